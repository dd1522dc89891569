// Reads the fields of a JSON object that came from outside: missing and null are "not given", a
// wrong type is an error that names the field. The first error is kept; values read after it do not
// matter.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"

namespace switchyard::gateway {

// `prefix` stands before field names in errors: "messages[2].".
class JsonFields {
 public:
  JsonFields(const nlohmann::json& object, std::string prefix = {})
      : object_(object), prefix_(std::move(prefix)) {}

  // nullptr where the field is missing or null.
  const nlohmann::json* Find(const char* key) const;
  std::optional<bool> Bool(const char* key);
  std::optional<float> Float(const char* key);
  std::optional<int32_t> Int32(const char* key);
  // Any 64-bit integer; a negative one wraps.
  std::optional<uint64_t> Bits64(const char* key);
  std::optional<std::string> String(const char* key);

  std::string Name(std::string_view key) const { return prefix_ + std::string(key); }
  void Fail(absl::Status status) {
    if (status_.ok()) status_ = std::move(status);
  }
  void WrongType(std::string_view key, std::string_view expected);
  const absl::Status& status() const { return status_; }

 private:
  const nlohmann::json& object_;
  const std::string prefix_;
  absl::Status status_;
};

// The request's body as an object, at most 64 levels deep. INVALID_ARGUMENT says where it breaks.
absl::StatusOr<nlohmann::json> ParseBody(std::string_view body);

// A JSON integer that fits 32 bits.
std::optional<int32_t> AsInt32(const nlohmann::json& value);

}  // namespace switchyard::gateway
