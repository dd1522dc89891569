#include "services/model/config_reader.h"

#include <nlohmann/json.hpp>

#include "services/base/json_error.h"
#include "services/base/status.h"

namespace switchyard::model {
namespace {

using nlohmann::json;

// What an error shows of a value: enough to recognise it, never a whole file.
std::string Shown(const json& value) {
  std::string text = value.dump(-1, ' ', false, json::error_handler_t::replace);
  if (text.size() > 80) text = text.substr(0, 77) + "...";
  return text;
}

// Printing and copying of a value recurse, so its depth is bounded before it is built.
bool NestsTooDeep(std::string_view text) {
  constexpr int kMaxDepth = 64;
  int depth = 0;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') ++i;
      if (c == '"') in_string = false;
    } else if (c == '"') {
      in_string = true;
    } else if (c == '[' || c == '{') {
      if (++depth > kMaxDepth) return true;
    } else if (c == ']' || c == '}') {
      --depth;
    }
  }
  return false;
}

}  // namespace

const json* ConfigReader::Field(std::string_view name) const {
  const auto it = object_->find(std::string(name));
  return it == object_->end() || it->is_null() ? nullptr : &*it;
}

absl::Status ConfigReader::Wrong(std::string_view field, const json& found,
                                 std::string_view expected) const {
  return InvalidArgument("{}: {} is {}, expected {}", path_, field, Shown(found), expected);
}

absl::Status ConfigReader::Unsupported(std::string_view field, std::string_view value,
                                       std::string_view supported) const {
  return Unimplemented("{}: {} is {}; supported: {}", path_, field, value, supported);
}

absl::StatusOr<int> ConfigReader::Int(std::initializer_list<std::string_view> names, int min,
                                      int max, std::optional<int> fallback) const {
  for (std::string_view name : names) {
    const json* field = Field(name);
    if (field == nullptr) continue;
    const bool fits = field->is_number_unsigned()
                          ? field->get<uint64_t>() <= static_cast<uint64_t>(max)
                          : field->is_number_integer() && field->get<int64_t>() <= max;
    if (!fits || field->get<int64_t>() < min) {
      return Wrong(name, *field, fmt::format("an integer in [{}, {}]", min, max));
    }
    return field->get<int>();
  }
  if (fallback.has_value()) return *fallback;
  return InvalidArgument("{}: {} is missing", path_, *names.begin());
}

absl::StatusOr<double> ConfigReader::Double(std::string_view name, double min, double max,
                                            std::optional<double> fallback) const {
  const json* field = Field(name);
  if (field == nullptr) {
    if (fallback.has_value()) return *fallback;
    return InvalidArgument("{}: {} is missing", path_, name);
  }
  // Written so that a NaN fails.
  if (!field->is_number() || !(field->get<double>() >= min && field->get<double>() <= max)) {
    return Wrong(name, *field, fmt::format("a number in [{}, {}]", min, max));
  }
  return field->get<double>();
}

absl::StatusOr<bool> ConfigReader::Bool(std::string_view name, bool fallback) const {
  const json* field = Field(name);
  if (field == nullptr) return fallback;
  if (!field->is_boolean()) return Wrong(name, *field, "true or false");
  return field->get<bool>();
}

absl::StatusOr<std::string> ConfigReader::String(std::initializer_list<std::string_view> names,
                                                 std::string_view fallback) const {
  for (std::string_view name : names) {
    const json* field = Field(name);
    if (field == nullptr) continue;
    if (!field->is_string()) return Wrong(name, *field, "a string");
    return field->get<std::string>();
  }
  return std::string(fallback);
}

absl::StatusOr<std::optional<ConfigReader>> ConfigReader::Object(std::string_view name) const {
  const json* field = Field(name);
  if (field == nullptr) return std::optional<ConfigReader>();
  if (!field->is_object()) return Wrong(name, *field, "an object");
  return std::optional<ConfigReader>(ConfigReader(*field, fmt::format("{}: {}", path_, name)));
}

absl::Status ConfigReader::RequireBool(std::string_view field, bool supported,
                                       bool fallback) const {
  SY_ASSIGN_OR_RETURN(const bool value, Bool(field, fallback));
  if (value == supported) return absl::OkStatus();
  return Unsupported(field, value ? "true" : "false", supported ? "true" : "false");
}

absl::StatusOr<json> ParseObject(std::string_view text, std::string_view path) {
  if (NestsTooDeep(text)) return InvalidArgument("{}: nests too deep", path);
  try {
    json parsed = json::parse(text.begin(), text.end());
    if (!parsed.is_object()) {
      return InvalidArgument("{}: holds {}, expected an object", path, parsed.type_name());
    }
    return parsed;
  } catch (const json::exception& error) {
    return InvalidArgument("{}: {}", path, NotValidJson(error.what()));
  }
}

}  // namespace switchyard::model
