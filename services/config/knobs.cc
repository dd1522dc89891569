#include "services/config/knobs.h"

#include <algorithm>
#include <limits>
#include <set>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "nlohmann/json.hpp"
#include "services/base/check.h"
#include "services/base/status.h"
#include "services/config/routing_policy.h"
#include "services/config/units.h"

namespace switchyard::config {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::Message;

void Collect(const Descriptor& message, std::vector<const FieldDescriptor*>& path,
             std::vector<Knob>& out) {
  const std::string& group = message.options().GetExtension(v1::group);
  for (int i = 0; i < message.field_count(); ++i) {
    const FieldDescriptor* field = message.field(i);
    path.push_back(field);
    if (field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE) {
      Collect(*field->message_type(), path, out);
    } else {
      SY_CHECK(field->options().HasExtension(v1::knob));
      out.push_back({.key = field->name(),
                     .group = group,
                     .path = path,
                     .options = &field->options().GetExtension(v1::knob)});
    }
    path.pop_back();
  }
}

Message* Parent(const Knob& knob, Message* config) {
  for (size_t i = 0; i + 1 < knob.path.size(); ++i) {
    config = config->GetReflection()->MutableMessage(config, knob.path[i]);
  }
  return config;
}

absl::Status CheckText(const Knob& knob, std::string_view text) {
  const v1::Knob& options = *knob.options;
  if (!options.choices().empty() && std::find(options.choices().begin(), options.choices().end(),
                                              text) == options.choices().end()) {
    return InvalidArgument("\"{}\" is not one of {}", text, absl::StrJoin(options.choices(), ", "));
  }
  switch (options.kind()) {
    case v1::Knob::BYTES:
      return ParseBytes(text).status();
    case v1::Knob::DURATION:
      return ParseDuration(text).status();
    case v1::Knob::ADDRESS:
      return CheckAddress(text);
    case v1::Knob::PEER_ADDRESS:
      return CheckPeerAddress(text);
    case v1::Knob::ROUTING:
      return ParseRoutingPolicy(text).status();
    case v1::Knob::EXPERTS:
      return text == "none" ? absl::OkStatus() : ParseExpertRanges(text).status();
    default:
      return absl::OkStatus();
  }
}

absl::StatusOr<int64_t> ParseInteger(const Knob& knob, std::string_view text) {
  const v1::Knob& options = *knob.options;
  const bool bounded = options.min() < options.max();
  const int64_t low = bounded ? options.min() : std::numeric_limits<int32_t>::min();
  const int64_t high = bounded ? options.max() : std::numeric_limits<int32_t>::max();
  int64_t value = 0;
  if (!absl::SimpleAtoi(ToAbsl(text), &value) || value < low || value > high) {
    return InvalidArgument("\"{}\" is not an integer from {} to {}", text, low, high);
  }
  return value;
}

absl::StatusOr<bool> ParseBool(std::string_view text) {
  if (text == "true" || text == "1") return true;
  if (text == "false" || text == "0") return false;
  return InvalidArgument("\"{}\" is neither true nor false", text);
}

absl::Status Set(const Knob& knob, const std::vector<std::string>& items, Message* config) {
  Message* parent = Parent(knob, config);
  const google::protobuf::Reflection& reflection = *parent->GetReflection();
  const FieldDescriptor* field = &knob.field();
  if (field->is_repeated()) {
    for (const std::string& item : items) {
      if (item.empty()) return InvalidArgument("has an empty item");
      SY_RETURN_IF_ERROR(CheckText(knob, item));
    }
    reflection.ClearField(parent, field);
    for (const std::string& item : items) reflection.AddString(parent, field, item);
    return absl::OkStatus();
  }
  const std::string& text = items.front();
  switch (field->cpp_type()) {
    case FieldDescriptor::CPPTYPE_BOOL: {
      SY_ASSIGN_OR_RETURN(const bool value, ParseBool(text));
      reflection.SetBool(parent, field, value);
      return absl::OkStatus();
    }
    case FieldDescriptor::CPPTYPE_INT32: {
      SY_ASSIGN_OR_RETURN(const int64_t value, ParseInteger(knob, text));
      reflection.SetInt32(parent, field, static_cast<int32_t>(value));
      return absl::OkStatus();
    }
    case FieldDescriptor::CPPTYPE_STRING:
      SY_RETURN_IF_ERROR(CheckText(knob, text));
      reflection.SetString(parent, field, text);
      return absl::OkStatus();
    default:
      SY_CHECK(false && "a knob is a bool, an int32, a string or a list of strings");
      return absl::OkStatus();
  }
}

// Levenshtein distance.
size_t Distance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = std::exchange(row[0], i);
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t swap = diagonal + (a[i - 1] != b[j - 1]);
      diagonal = row[j];
      row[j] = std::min({swap, row[j] + 1, row[j - 1] + 1});
    }
  }
  return row[b.size()];
}

}  // namespace

bool Knob::is_bool() const { return field().cpp_type() == FieldDescriptor::CPPTYPE_BOOL; }

std::string Knob::flag() const { return "--" + absl::StrReplaceAll(key, {{"_", "-"}}); }

std::string Knob::environment() const { return "SWITCHYARD_" + absl::AsciiStrToUpper(key); }

std::vector<Knob> KnobsOf(const Descriptor& config) {
  std::vector<Knob> out;
  std::vector<const FieldDescriptor*> path;
  Collect(config, path, out);
  std::set<std::string> keys;
  for (const Knob& knob : out) SY_CHECK(keys.insert(knob.key).second);
  return out;
}

bool IsSet(const Knob& knob, const Message& config) {
  const Message* at = &config;
  for (size_t i = 0; i + 1 < knob.path.size(); ++i) {
    at = &at->GetReflection()->GetMessage(*at, knob.path[i]);
  }
  const google::protobuf::Reflection& reflection = *at->GetReflection();
  return knob.is_list() ? reflection.FieldSize(*at, &knob.field()) > 0
                        : reflection.HasField(*at, &knob.field());
}

absl::Status SetFromText(const Knob& knob, std::string_view source, std::string_view text,
                         Message* config) {
  std::vector<std::string> items = {std::string(text)};
  if (knob.is_list()) items = absl::StrSplit(ToAbsl(text), ',');
  return Annotate(Set(knob, items, config), source);
}

absl::Status SetFromJson(const Knob& knob, std::string_view source, const nlohmann::json& value,
                         Message* config) {
  if (knob.is_list() && value.is_array()) {
    std::vector<std::string> items;
    for (const nlohmann::json& item : value) {
      if (!item.is_string()) return InvalidArgument("{}: {} is not a string", source, item.dump());
      items.push_back(item.get<std::string>());
    }
    return Annotate(Set(knob, items, config), source);
  }
  const auto type = knob.field().cpp_type();
  const bool fits = type == FieldDescriptor::CPPTYPE_BOOL    ? value.is_boolean()
                    : type == FieldDescriptor::CPPTYPE_INT32 ? value.is_number_integer()
                                                             : value.is_string();
  if (!fits) {
    return InvalidArgument("{}: {} is not {}", source, value.dump(),
                           type == FieldDescriptor::CPPTYPE_BOOL    ? "true or false"
                           : type == FieldDescriptor::CPPTYPE_INT32 ? "an integer"
                           : knob.is_list()                         ? "an array of strings"
                                                                    : "a string");
  }
  return SetFromText(knob, source, value.is_string() ? value.get<std::string>() : value.dump(),
                     config);
}

std::string Suggest(std::string_view name, const std::vector<std::string>& names) {
  size_t best = std::max<size_t>(1, name.size() / 3) + 1;
  std::string found;
  for (const std::string& candidate : names) {
    if (const size_t d = Distance(name, candidate); d < best) best = d, found = candidate;
  }
  return found.empty() ? "" : fmt::format("; did you mean {}?", found);
}

}  // namespace switchyard::config
