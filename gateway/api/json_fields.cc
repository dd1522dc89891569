#include "gateway/api/json_fields.h"

#include <algorithm>
#include <limits>

#include "gateway/streams/field_error.h"
#include "services/base/status.h"

namespace switchyard::gateway {

using nlohmann::json;

namespace {

constexpr int kDepthMax = 64;

// Before the parser sees it: its tree would be built and torn down level by level.
bool DeeperThan(std::string_view text, int limit) {
  int depth = 0;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') {
        ++i;
      } else if (c == '"') {
        in_string = false;
      }
    } else if (c == '"') {
      in_string = true;
    } else if (c == '[' || c == '{') {
      if (++depth > limit) return true;
    } else if (c == ']' || c == '}') {
      --depth;
    }
  }
  return false;
}

}  // namespace

absl::StatusOr<json> ParseBody(std::string_view body) {
  if (DeeperThan(body, kDepthMax)) {
    return InvalidArgument("the body is nested deeper than {} levels", kDepthMax);
  }
  json value;
  try {
    value = json::parse(body);
  } catch (const json::parse_error& error) {
    return InvalidArgument("the body is not valid JSON at byte {}", error.byte);
  } catch (const json::exception&) {
    return InvalidArgument("the body is not valid JSON: a number is out of range");
  }
  if (!value.is_object()) return InvalidArgument("the body is not a JSON object");
  return value;
}

std::optional<int32_t> AsInt32(const json& value) {
  if (!value.is_number_integer()) return std::nullopt;
  if (value.is_number_unsigned()) {
    const uint64_t number = value.get<uint64_t>();
    if (number > static_cast<uint64_t>(std::numeric_limits<int32_t>::max())) return std::nullopt;
    return static_cast<int32_t>(number);
  }
  const int64_t number = value.get<int64_t>();
  if (number < std::numeric_limits<int32_t>::min()) return std::nullopt;
  return static_cast<int32_t>(number);
}

const json* JsonFields::Find(const char* key) const {
  const auto it = object_.find(key);
  return it == object_.end() || it->is_null() ? nullptr : &*it;
}

void JsonFields::WrongType(std::string_view key, std::string_view expected) {
  const auto it = object_.find(key);
  const std::string found = it == object_.end() ? "nothing" : it->type_name();
  Fail(FieldError(Name(key), "expected {}, found {}", expected, found));
}

std::optional<bool> JsonFields::Bool(const char* key) {
  const json* value = Find(key);
  if (value == nullptr) return std::nullopt;
  if (!value->is_boolean()) {
    WrongType(key, "true or false");
    return std::nullopt;
  }
  return value->get<bool>();
}

std::optional<float> JsonFields::Float(const char* key) {
  const json* value = Find(key);
  if (value == nullptr) return std::nullopt;
  if (!value->is_number()) {
    WrongType(key, "a number");
    return std::nullopt;
  }
  constexpr double kMax = std::numeric_limits<float>::max();
  return static_cast<float>(std::clamp(value->get<double>(), -kMax, kMax));
}

std::optional<int32_t> JsonFields::Int32(const char* key) {
  const json* value = Find(key);
  if (value == nullptr) return std::nullopt;
  const std::optional<int32_t> number = AsInt32(*value);
  if (!number.has_value()) WrongType(key, "an integer of 32 bits");
  return number;
}

std::optional<uint64_t> JsonFields::Bits64(const char* key) {
  const json* value = Find(key);
  if (value == nullptr) return std::nullopt;
  if (!value->is_number_integer()) {
    WrongType(key, "an integer");
    return std::nullopt;
  }
  if (value->is_number_unsigned()) return value->get<uint64_t>();
  return static_cast<uint64_t>(value->get<int64_t>());
}

std::optional<std::string> JsonFields::String(const char* key) {
  const json* value = Find(key);
  if (value == nullptr) return std::nullopt;
  if (!value->is_string()) {
    WrongType(key, "a string");
    return std::nullopt;
  }
  return value->get<std::string>();
}

}  // namespace switchyard::gateway
