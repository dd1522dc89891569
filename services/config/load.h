// The one way in which a program comes by its config: flag > SWITCHYARD_* environment > --config
// FILE (strict JSON) > default. Flags, variables and keys are made from the fields of the config
// proto. For main only: nothing below main reads flags or the environment.
#pragma once

#include <google/protobuf/message.h>

#include <functional>
#include <ostream>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace switchyard::config {

struct Program {
  std::string name;                   // "switchyard-router"
  std::string description;            // one sentence
  std::vector<std::string> examples;  // whole command lines, shown by --help
  std::string positional;  // the key that may stand without its flag, such as "model"; or empty
};

enum class Outcome {
  kRun,
  kExit,  // --help, --version or --print-config was answered: exit with 0
};

// Looks up a variable of the environment; null if it is not set.
using Environment = std::function<const char*(const char*)>;
Environment ProcessEnvironment();

// Fills `config` (a message of protos/switchyard/config/v1); afterwards every field with a default
// is set. argv[0] is skipped. Errors are INVALID_ARGUMENT, name the flag, variable or key, and say
// what is expected. `out` takes what --help and its like print.
absl::StatusOr<Outcome> Load(const Program& program, int argc, const char* const* argv,
                             const Environment& environment, std::ostream& out,
                             google::protobuf::Message* config);

// Only the file's layer: strict JSON, unknown keys are refused by name.
absl::Status ApplyJson(const std::string& file_name, const std::string& text,
                       google::protobuf::Message* config);

// The effective config as flat JSON, as --config takes it.
std::string Dump(const google::protobuf::Message& config);

// Exit statuses of every program, beside 0.
inline constexpr int kExitFailure = 1;
inline constexpr int kExitUsage = 2;  // a wrong flag, variable or config file

// What a program says of an error on standard error: "PROGRAM: message", and for kExitUsage a line
// that leads to --help. Returns `exit_status`.
int ReportError(const std::string& program, const absl::Status& status, int exit_status);

// kExitUsage of a UsageError (services/base/status.h), else kExitFailure.
int ExitStatus(const absl::Status& status);

// A whole main: loads the config of this process and runs. Returns the exit status.
int RunMain(const Program& program, int argc, const char* const* argv,
            google::protobuf::Message* config, const std::function<absl::Status()>& run);

}  // namespace switchyard::config
