#include "services/checkpoint/content_digest.h"

// The streaming state is a struct of ours to place; no allocation.
#define XXH_STATIC_LINKING_ONLY
#include <fmt/format.h>
#include <xxhash.h>

#include <algorithm>
#include <vector>

#include "services/base/status.h"

namespace switchyard::checkpoint {
namespace {

constexpr uint64_t kVectorBytesMax = 64 << 10;
constexpr uint64_t kMiddleBytes = 64;
constexpr size_t kMiddlesMax = 4096;
constexpr uint64_t kFileBytes = 4096;

class Hasher {
 public:
  Hasher() { XXH3_128bits_reset(&state_); }

  // The length goes in first, so that no two sequences of texts hash the same bytes.
  void Add(std::string_view text) {
    const uint64_t length = text.size();
    XXH3_128bits_update(&state_, &length, sizeof length);
    XXH3_128bits_update(&state_, text.data(), text.size());
  }

  absl::Status AddBytes(const TensorSource& source, int file, uint64_t offset, uint64_t bytes) {
    buffer_.resize(bytes);
    SY_RETURN_IF_ERROR(source.Read(file, offset, buffer_.data(), buffer_.size()));
    Add(buffer_);
    return absl::OkStatus();
  }

  std::string Hex() const {
    const XXH128_hash_t hash = XXH3_128bits_digest(&state_);
    return fmt::format("{:016x}{:016x}", hash.high64, hash.low64);
  }

 private:
  XXH3_state_t state_;
  std::string buffer_;
};

}  // namespace

absl::StatusOr<std::string> ContentDigest(const TensorSource& source) {
  Hasher hasher;
  std::vector<const TensorInfo*> large;
  std::vector<uint64_t> first(source.files().size(), UINT64_MAX);  // of each file's tensors
  std::vector<uint64_t> end(source.files().size(), 0);
  for (const TensorInfo& t : source.tensors()) {
    hasher.Add(t.name);
    hasher.Add(t.unknown_dtype.empty() ? Name(t.dtype) : t.unknown_dtype);
    hasher.Add(fmt::format("{}", fmt::join(t.shape, ",")));
    if (!t.scales.empty()) hasher.Add(t.scales);
    const auto file = static_cast<size_t>(t.file);
    first[file] = std::min(first[file], t.offset);
    end[file] = std::max(end[file], t.offset + t.bytes);
    if (t.shape.size() > 1 || t.bytes > kVectorBytesMax) {
      if (t.bytes > 0) large.push_back(&t);
      continue;
    }
    SY_RETURN_IF_ERROR(hasher.AddBytes(source, t.file, t.offset, t.bytes));
  }
  const size_t step = (large.size() + kMiddlesMax - 1) / kMiddlesMax;
  for (size_t i = 0; i < large.size(); i += step) {
    const TensorInfo& t = *large[i];
    const uint64_t bytes = std::min(kMiddleBytes, t.bytes);
    SY_RETURN_IF_ERROR(hasher.AddBytes(source, t.file, t.offset + (t.bytes - bytes) / 2, bytes));
  }
  for (size_t file = 0; file < first.size(); ++file) {
    if (end[file] <= first[file]) continue;
    SY_RETURN_IF_ERROR(hasher.AddBytes(source, static_cast<int>(file), first[file],
                                       std::min(kFileBytes, end[file] - first[file])));
  }
  return hasher.Hex();
}

}  // namespace switchyard::checkpoint
