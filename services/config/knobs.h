// The knobs of a config proto as a flat table: every leaf field by its name, whatever group message
// it stands in. Sets fields from text or JSON and checks them against their options
// (options.proto).
//
// A source is what an error names: "--max-queue", "SWITCHYARD_MAX_QUEUE", "router.json: max_queue".
#pragma once

#include <google/protobuf/message.h>

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "nlohmann/json_fwd.hpp"
#include "switchyard/config/v1/options.pb.h"

namespace switchyard::config {

struct Knob {
  std::string key;                                             // "max_queue"
  std::string group;                                           // heading in --help
  std::vector<const google::protobuf::FieldDescriptor*> path;  // groups, then the field itself
  const v1::Knob* options = nullptr;

  const google::protobuf::FieldDescriptor& field() const { return *path.back(); }
  bool is_bool() const;
  bool is_list() const { return field().is_repeated(); }
  std::string flag() const;         // "--max-queue"
  std::string environment() const;  // "SWITCHYARD_MAX_QUEUE"
};

// In the order of the proto. SY_CHECKs that no key stands twice and that every leaf has options.
std::vector<Knob> KnobsOf(const google::protobuf::Descriptor& config);

bool IsSet(const Knob& knob, const google::protobuf::Message& config);

// Replaces the field's value. A list takes comma-separated items.
absl::Status SetFromText(const Knob& knob, std::string_view source, std::string_view text,
                         google::protobuf::Message* config);
// The same from a JSON value of the field's own type (a list: an array of strings, or one string).
absl::Status SetFromJson(const Knob& knob, std::string_view source, const nlohmann::json& value,
                         google::protobuf::Message* config);

// "; did you mean \"max_queue\"?" where one of the names is near, else "".
std::string Suggest(std::string_view name, const std::vector<std::string>& names);

}  // namespace switchyard::config
