#include "services/base/text_fingerprint.h"

#include <fmt/format.h>
#include <xxhash.h>

#include <memory>

#include "services/base/file.h"
#include "services/base/status.h"

namespace switchyard {
namespace {

constexpr uint64_t kFileBytesMax = 256 << 20;

}  // namespace

absl::StatusOr<std::string> TextFingerprint(const std::string& model_dir) {
  const std::unique_ptr<XXH3_state_t, XXH_errorcode (*)(XXH3_state_t*)> state(XXH3_createState(),
                                                                              XXH3_freeState);
  XXH3_128bits_reset(state.get());
  for (const char* name :
       {"config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}) {
    const std::string path = model_dir + "/" + name;
    uint64_t length = ~uint64_t{0};  // no such file
    std::string text;
    if (FileExists(path) || std::string_view(name) == "config.json") {
      SY_ASSIGN_OR_RETURN(text, ReadFile(path, kFileBytesMax));
      length = text.size();
    }
    // The length goes first, so that bytes cannot move from one file to the next unseen.
    XXH3_128bits_update(state.get(), &length, sizeof length);
    XXH3_128bits_update(state.get(), text.data(), text.size());
  }
  const XXH128_hash_t hash = XXH3_128bits_digest(state.get());
  return fmt::format("{:016x}{:016x}", hash.high64, hash.low64);
}

}  // namespace switchyard
