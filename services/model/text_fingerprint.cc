#include "services/model/text_fingerprint.h"

#include <fmt/format.h>
#include <xxhash.h>

#include <fstream>
#include <memory>

#include "services/base/file.h"
#include "services/base/status.h"
#include "services/gguf/header.h"

namespace switchyard {
namespace {

constexpr uint64_t kFileBytesMax = 256 << 20;

// The length of a text goes in first, so that bytes cannot move from one to the next unseen.
class TextHash {
 public:
  TextHash() : state_(XXH3_createState(), XXH3_freeState) { XXH3_128bits_reset(state_.get()); }

  void Add(std::string_view text, uint64_t length) {
    XXH3_128bits_update(state_.get(), &length, sizeof length);
    XXH3_128bits_update(state_.get(), text.data(), text.size());
  }
  std::string Hex() const {
    const XXH128_hash_t hash = XXH3_128bits_digest(state_.get());
    return fmt::format("{:016x}{:016x}", hash.high64, hash.low64);
  }

 private:
  const std::unique_ptr<XXH3_state_t, XXH_errorcode (*)(XXH3_state_t*)> state_;
};

// The bytes of a GGUF file's metadata.
absl::StatusOr<std::string> MetadataFingerprint(const std::string& path) {
  SY_ASSIGN_OR_RETURN(const gguf::Header header, gguf::ReadHeader(path, gguf::NoList));
  std::string bytes(header.metadata_bytes, '\0');
  std::ifstream in(path, std::ios::binary);
  if (!in.read(bytes.data(), static_cast<std::streamsize>(bytes.size()))) {
    return DataLoss("{}: cannot be read", path);
  }
  TextHash hash;
  hash.Add(bytes, bytes.size());
  return hash.Hex();
}

}  // namespace

absl::StatusOr<std::string> TextFingerprint(const std::string& model) {
  if (gguf::IsGguf(model)) return MetadataFingerprint(model);
  TextHash hash;
  for (const char* name :
       {"config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}) {
    const std::string path = model + "/" + name;
    uint64_t length = ~uint64_t{0};  // no such file
    std::string text;
    if (FileExists(path) || std::string_view(name) == "config.json") {
      SY_ASSIGN_OR_RETURN(text, ReadFile(path, kFileBytesMax));
      length = text.size();
    }
    hash.Add(text, length);
  }
  return hash.Hex();
}

}  // namespace switchyard
