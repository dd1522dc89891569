#include "services/config/load.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdlib>
#include <iostream>
#include <map>

#include "absl/strings/str_join.h"
#include "absl/synchronization/mutex.h"
#include "nlohmann/json.hpp"
#include "services/base/file.h"
#include "services/base/json_error.h"
#include "services/base/status.h"
#include "services/config/build_info.h"
#include "services/config/help.h"
#include "services/config/knobs.h"

namespace switchyard::config {
namespace {

using google::protobuf::Message;

constexpr uint64_t kConfigBytesMax = 1 << 20;

std::vector<std::string> Keys(const std::vector<Knob>& knobs) {
  std::vector<std::string> out;
  for (const Knob& knob : knobs) out.push_back(knob.key);
  return out;
}

const Knob* Find(const std::vector<Knob>& knobs, const std::string& key) {
  const auto it =
      std::find_if(knobs.begin(), knobs.end(), [&](const Knob& knob) { return knob.key == key; });
  return it == knobs.end() ? nullptr : &*it;
}

// CLI11 only splits argv and prints help; values are checked where those of all layers are.
class CommandLine {
 public:
  CommandLine(const Program& program, const std::vector<Knob>& knobs)
      : program_(program), knobs_(knobs), app_(program.description, program.name) {
    FormatHelp(app_);
    version_ = app_.add_flag("--version")->description("Print the version and exit");
    print_ =
        app_.add_flag("--print-config")->description("Print the effective config as JSON and exit");
    file_ = app_.add_option("--config")
                ->description("Config file: a JSON object of the keys below")
                ->type_name("FILE");
    for (const Knob& knob : knobs_) Add(knob);
    app_.footer(Footer());
    app_.allow_extras();
  }

  // True if it was --help, which is answered.
  absl::StatusOr<bool> Parse(int argc, const char* const* argv, std::ostream& out) {
    try {
      app_.parse(argc, argv);
    } catch (const CLI::CallForHelp&) {
      out << app_.help();
      return true;
    } catch (const CLI::ParseError& error) {
      return InvalidArgument("{}", error.what());
    }
    if (version_->count() > 0) {
      out << program_.name << " " << Version() << " (" << Commit() << ")\n";
      return true;
    }
    const std::vector<std::string> extras = app_.remaining();
    if (extras.empty()) return false;
    std::vector<std::string> flags;
    for (const Knob& knob : knobs_) flags.push_back(knob.flag());
    const std::string name = extras.front().substr(0, extras.front().find('='));
    return InvalidArgument("unknown argument {}{}", name,
                           name.rfind('-', 0) == 0 ? Suggest(name, flags) : "");
  }

  bool print_config() const { return print_->count() > 0; }
  std::string config_file() const { return file_->count() > 0 ? file_->results().front() : ""; }

  absl::Status Apply(Message* config) const {
    for (const Knob& knob : knobs_) {
      const CLI::Option* option = options_.at(knob.key);
      if (option->count() == 0) continue;
      SY_RETURN_IF_ERROR(
          SetFromText(knob, knob.flag(), absl::StrJoin(option->results(), ","), config));
    }
    return absl::OkStatus();
  }

 private:
  void Add(const Knob& knob) {
    const v1::Knob& options = *knob.options;
    std::string help = options.help();
    if (!options.choices().empty() && !knob.is_bool()) {
      help += fmt::format(" [{}]", absl::StrJoin(options.choices(), "|"));
    }
    if (!options.fallback().empty() && !knob.is_bool()) {
      help += fmt::format(" (default {})", options.fallback());
    }
    if (options.required())
      help += options.instead().empty()
                  ? " (required)"
                  : fmt::format(" (required, or {})", Find(knobs_, options.instead())->flag());
    CLI::Option* option = nullptr;
    if (knob.is_bool()) {
      option = app_.add_flag(knob.flag())->description(help);
    } else {
      const bool positional = knob.key == program_.positional;
      option = app_.add_option((positional ? knob.key + "," : "") + knob.flag())->description(help);
      option->type_name(TypeName(knob));
      if (knob.is_list()) option->expected(1)->take_all();
    }
    options_[knob.key] = option->group(knob.group);
  }

  static std::string TypeName(const Knob& knob) {
    if (!knob.options->value_name().empty()) return knob.options->value_name();
    if (knob.options->kind() == v1::Knob::ADDRESS) return "ADDR";
    using Field = google::protobuf::FieldDescriptor;
    return knob.field().cpp_type() == Field::CPPTYPE_INT32 ? "N" : "NAME";
  }

  std::string Footer() const {
    std::string out =
        "\nEvery flag may also be given as SWITCHYARD_<FLAG> in the environment or as a key of\n"
        "--config (--log-level debug, SWITCHYARD_LOG_LEVEL=debug, {\"log_level\": \"debug\"});\n"
        "a flag wins over the environment, and that over the file.";
    if (!program_.examples.empty()) out += "\n\nExamples:";
    for (const std::string& example : program_.examples) out += "\n  " + example;
    return out;
  }

  const Program& program_;
  const std::vector<Knob>& knobs_;
  CLI::App app_;
  CLI::Option *version_ = nullptr, *print_ = nullptr, *file_ = nullptr;
  std::map<std::string, CLI::Option*> options_;
};

absl::Status ApplyEnvironment(const std::vector<Knob>& knobs, const Environment& environment,
                              Message* config) {
  for (const Knob& knob : knobs) {
    const std::string name = knob.environment();
    if (const char* value = environment(name.c_str())) {
      SY_RETURN_IF_ERROR(SetFromText(knob, name, value, config));
    }
  }
  return absl::OkStatus();
}

absl::Status ApplyDefaults(const std::vector<Knob>& knobs, Message* config) {
  for (const Knob& knob : knobs) {
    if (IsSet(knob, *config)) continue;
    if (!knob.options->fallback().empty()) {
      SY_RETURN_IF_ERROR(
          SetFromText(knob, "default of " + knob.flag(), knob.options->fallback(), config));
    } else if (knob.options->required()) {
      const Knob* instead = Find(knobs, knob.options->instead());
      if (instead != nullptr && IsSet(*instead, *config)) continue;
      return InvalidArgument(
          "{} is missing: {}. Give it as a flag, as {} or as \"{}\" in --config{}", knob.flag(),
          knob.options->help(), knob.environment(), knob.key,
          instead == nullptr ? "" : fmt::format(" (or {} instead)", instead->flag()));
    }
  }
  return absl::OkStatus();
}

nlohmann::ordered_json ValueOf(const Knob& knob, const Message& config) {
  const Message* at = &config;
  for (size_t i = 0; i + 1 < knob.path.size(); ++i) {
    at = &at->GetReflection()->GetMessage(*at, knob.path[i]);
  }
  const google::protobuf::Reflection& reflection = *at->GetReflection();
  const auto* field = &knob.field();
  if (knob.is_list()) {
    nlohmann::ordered_json list = nlohmann::ordered_json::array();
    for (int i = 0; i < reflection.FieldSize(*at, field); ++i) {
      list.push_back(reflection.GetRepeatedString(*at, field, i));
    }
    return list;
  }
  using Field = google::protobuf::FieldDescriptor;
  if (field->cpp_type() == Field::CPPTYPE_BOOL) return reflection.GetBool(*at, field);
  if (field->cpp_type() == Field::CPPTYPE_INT32) return reflection.GetInt32(*at, field);
  return reflection.GetString(*at, field);
}

// A flag that does nothing without another one is a mistake, unless it says what --print-config
// writes of it anyway.
absl::Status CheckNeeds(const std::vector<Knob>& knobs, const Message& config) {
  for (const Knob& knob : knobs) {
    const Knob* needed = Find(knobs, knob.options->needs());
    if (needed == nullptr || !IsSet(knob, config) || IsSet(*needed, config)) continue;
    const nlohmann::ordered_json value = ValueOf(knob, config);
    const std::string text = value.is_string() ? value.get<std::string>() : value.dump();
    if (text == knob.options->fallback()) continue;
    return InvalidArgument("{} says nothing without {}: give both or neither", knob.flag(),
                           needed->flag());
  }
  return absl::OkStatus();
}

}  // namespace

Environment ProcessEnvironment() {
  return [](const char* name) -> const char* { return std::getenv(name); };
}

absl::Status ApplyJson(const std::string& file_name, const std::string& text, Message* config) {
  nlohmann::json json;
  try {
    json = nlohmann::json::parse(text);
  } catch (const nlohmann::json::exception& error) {
    return InvalidArgument("{}: {}", file_name, NotValidJson(error.what()));
  }
  if (!json.is_object()) return InvalidArgument("{}: is not a JSON object", file_name);
  const std::vector<Knob> knobs = KnobsOf(*config->GetDescriptor());
  for (const auto& [key, value] : json.items()) {
    const Knob* known = nullptr;
    for (const Knob& knob : knobs) {
      if (knob.key == key) known = &knob;
    }
    if (known == nullptr) {
      return InvalidArgument("{}: unknown key \"{}\"{}", file_name, key, Suggest(key, Keys(knobs)));
    }
    SY_RETURN_IF_ERROR(SetFromJson(*known, fmt::format("{}: {}", file_name, key), value, config));
  }
  return absl::OkStatus();
}

absl::StatusOr<Outcome> Load(const Program& program, int argc, const char* const* argv,
                             const Environment& environment, std::ostream& out, Message* config) {
  const std::vector<Knob> knobs = KnobsOf(*config->GetDescriptor());
  CommandLine line(program, knobs);
  SY_ASSIGN_OR_RETURN(const bool answered, line.Parse(argc, argv, out));
  if (answered) return Outcome::kExit;
  std::string file = line.config_file();
  if (const char* path = environment("SWITCHYARD_CONFIG"); file.empty() && path != nullptr) {
    file = path;
  }
  if (!file.empty()) {
    absl::StatusOr<std::string> text = ReadFile(file, kConfigBytesMax);
    if (!text.ok()) return Annotate(text.status(), "--config");
    SY_RETURN_IF_ERROR(ApplyJson(file, *text, config));
  }
  SY_RETURN_IF_ERROR(ApplyEnvironment(knobs, environment, config));
  SY_RETURN_IF_ERROR(line.Apply(config));
  SY_RETURN_IF_ERROR(CheckNeeds(knobs, *config));
  SY_RETURN_IF_ERROR(ApplyDefaults(knobs, config));
  if (line.print_config()) {
    out << Dump(*config) << "\n";
    return Outcome::kExit;
  }
  return Outcome::kRun;
}

std::string Dump(const Message& config) {
  nlohmann::ordered_json out = nlohmann::ordered_json::object();
  for (const Knob& knob : KnobsOf(*config.GetDescriptor())) {
    if (IsSet(knob, config)) out[knob.key] = ValueOf(knob, config);
  }
  return out.dump(2);
}

int ExitStatus(const absl::Status& status) {
  return IsUsageError(status) ? kExitUsage : kExitFailure;
}

int ReportError(const std::string& program, const absl::Status& status, int exit_status) {
  std::cerr << program << ": " << ToStd(status.message()) << "\n";
  if (exit_status == kExitUsage) std::cerr << "See " << program << " --help\n";
  return exit_status;
}

int RunMain(const Program& program, int argc, const char* const* argv, Message* config,
            const std::function<absl::Status()>& run) {
  // Debian's Abseil looks for cycles at every lock, under one lock of the process.
  absl::SetMutexDeadlockDetectionMode(absl::OnDeadlockCycle::kIgnore);
  const auto outcome = Load(program, argc, argv, ProcessEnvironment(), std::cout, config);
  if (!outcome.ok()) return ReportError(program.name, outcome.status(), kExitUsage);
  if (*outcome == Outcome::kExit) return 0;
  const absl::Status status = run();
  return status.ok() ? 0 : ReportError(program.name, status, ExitStatus(status));
}

}  // namespace switchyard::config
