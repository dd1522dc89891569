// Typed, bounded access to the fields of a JSON object, for reading configs whose every mistake has
// to be named: "config.json: hidden_size is -3, expected an integer in [1, 131072]". Internal to
// services/model.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace switchyard::model {

// A view: the JSON object must outlive it. Copyable, const, thread-safe. A null field counts as
// absent, as Hugging Face writes it for "off".
class ConfigReader {
 public:
  // `path` is what errors name, e.g. "config.json".
  ConfigReader(const nlohmann::json& object, std::string path)
      : object_(&object), path_(std::move(path)) {}

  const std::string& path() const { return path_; }
  bool Has(std::string_view field) const { return Field(field) != nullptr; }

  // An integer in [min, max]. The first of several spellings that is present counts;
  // INVALID_ARGUMENT if there is none and no default, or if it is no integer or out of range.
  absl::StatusOr<int> Int(std::initializer_list<std::string_view> names, int min, int max,
                          std::optional<int> fallback = std::nullopt) const;
  absl::StatusOr<int> Int(std::string_view name, int min, int max,
                          std::optional<int> fallback = std::nullopt) const {
    return Int({name}, min, max, fallback);
  }
  absl::StatusOr<double> Double(std::string_view name, double min, double max,
                                std::optional<double> fallback = std::nullopt) const;
  absl::StatusOr<bool> Bool(std::string_view name, bool fallback) const;
  absl::StatusOr<std::string> String(std::initializer_list<std::string_view> names,
                                     std::string_view fallback) const;
  // A sub-object, nullopt if absent.
  absl::StatusOr<std::optional<ConfigReader>> Object(std::string_view name) const;
  // The field as JSON, null pointer if absent or null.
  const nlohmann::json* Field(std::string_view name) const;

  // UNIMPLEMENTED: "<path>: <field> is <value>; supported: <supported>".
  absl::Status Unsupported(std::string_view field, std::string_view value,
                           std::string_view supported) const;
  // UNIMPLEMENTED unless the boolean field has the only value that we support.
  absl::Status RequireBool(std::string_view field, bool supported, bool fallback) const;
  // INVALID_ARGUMENT: "<path>: <field> is <found>, expected <expected>".
  absl::Status Wrong(std::string_view field, const nlohmann::json& found,
                     std::string_view expected) const;

 private:
  const nlohmann::json* object_;
  std::string path_;
};

// Parses a JSON object. INVALID_ARGUMENT names `path` and the place of the mistake.
absl::StatusOr<nlohmann::json> ParseObject(std::string_view text, std::string_view path);

}  // namespace switchyard::model
