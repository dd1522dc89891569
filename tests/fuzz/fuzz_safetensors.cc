// A whole .safetensors file: the header's parser, the mapping of what it lists, the weight check
// and the digest. The file lies in memory and is opened through a link, as a checkpoint's files
// are.
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

#include "services/base/check.h"
#include "services/checkpoint/content_digest.h"
#include "services/checkpoint/header.h"
#include "services/checkpoint/shard_index.h"
#include "services/checkpoint/weight_check.h"

namespace switchyard::checkpoint {
namespace {

// A directory whose model.safetensors is a link to a file in memory.
class MemoryCheckpoint {
 public:
  MemoryCheckpoint() : fd_(memfd_create("fuzz", 0)) {
    SY_CHECK(fd_ >= 0);
    std::string name = (std::filesystem::temp_directory_path() / "sy-fuzz-XXXXXX").string();
    SY_CHECK(mkdtemp(name.data()) != nullptr);
    directory_ = name;
    std::filesystem::create_symlink("/proc/self/fd/" + std::to_string(fd_),
                                    directory_ / "model.safetensors");
  }
  ~MemoryCheckpoint() {
    std::filesystem::remove_all(directory_);
    close(fd_);
  }
  MemoryCheckpoint(const MemoryCheckpoint&) = delete;
  MemoryCheckpoint& operator=(const MemoryCheckpoint&) = delete;

  std::string Fill(const uint8_t* data, size_t size) {
    SY_CHECK(ftruncate(fd_, 0) == 0);
    SY_CHECK(pwrite(fd_, data, size, 0) == static_cast<ssize_t>(size));
    return directory_.string();
  }

 private:
  int fd_;
  std::filesystem::path directory_;
};

void UseAll(TensorSource& source) {
  std::vector<TensorRange> ranges;
  for (const TensorInfo& tensor : source.tensors()) {
    const TensorRange range{tensor.name};
    if (source.Map({range}).ok()) ranges.push_back(range);
  }
  for (const TensorRange& range : ranges) SY_CHECK(source.Get(range).ok());
  (void)CheckWeights(source, ranges, nullptr);
  SY_CHECK(ContentDigest(source).ok());
}

}  // namespace

void FuzzOne(const uint8_t* data, size_t size) {
  static MemoryCheckpoint checkpoint;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  (void)ParseHeader(text, "fuzz", 8, 1 << 20);
  (void)ParseShardIndex(text, "fuzz");
  auto source = OpenSafetensors(checkpoint.Fill(data, size));
  if (source.ok()) UseAll(**source);
}

}  // namespace switchyard::checkpoint

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  switchyard::checkpoint::FuzzOne(data, size);
  return 0;
}
