#include "services/model/model_config.h"

#include "services/base/file.h"
#include "services/base/status.h"
#include "services/gguf/split_model.h"
#include "services/model/config_reader.h"

namespace switchyard {
namespace {

constexpr uint64_t kMaxConfigBytes = 16 << 20;

absl::StatusOr<nlohmann::json> ReadObject(const std::string& directory, const std::string& name) {
  SY_ASSIGN_OR_RETURN(const std::string text, ReadFile(directory + "/" + name, kMaxConfigBytes));
  return model::ParseObject(text, directory + "/" + name);
}

// What ConfigFromGguf asks of a tokenizer's lists.
bool IsOfConfig(std::string_view key) { return key == "tokenizer.ggml.tokens"; }

}  // namespace

absl::StatusOr<ModelConfig> ReadModelConfig(const std::string& path) {
  if (gguf::IsGguf(path)) {
    SY_ASSIGN_OR_RETURN(const std::vector<gguf::Header> files, gguf::ReadModel(path, IsOfConfig));
    return ConfigFromGguf(files);
  }
  ModelConfig out;
  auto config = ReadObject(path, "config.json");
  if (!config.ok() && !FileExists(path + "/config.json")) {
    return absl::Status(config.status().code(),
                        fmt::format("{}; expected a Hugging Face directory or a .gguf file",
                                    ToStd(config.status().message())));
  }
  SY_ASSIGN_OR_RETURN(out.config, std::move(config));
  if (FileExists(path + "/generation_config.json")) {
    SY_ASSIGN_OR_RETURN(out.generation, ReadObject(path, "generation_config.json"));
  }
  return out;
}

}  // namespace switchyard
