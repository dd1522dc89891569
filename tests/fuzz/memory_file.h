// A checkpoint's file that lies in memory and is opened through a link, as a checkpoint's files
// are.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "services/base/check.h"
#include "services/checkpoint/content_digest.h"
#include "services/checkpoint/tensor_source.h"
#include "services/checkpoint/weight_check.h"

namespace switchyard::fuzz {

class MemoryFile {
 public:
  // Of this name, alone in a directory of its own.
  explicit MemoryFile(const std::string& name) : fd_(memfd_create("fuzz", 0)) {
    SY_CHECK(fd_ >= 0);
    std::string directory = (std::filesystem::temp_directory_path() / "sy-fuzz-XXXXXX").string();
    SY_CHECK(mkdtemp(directory.data()) != nullptr);
    path_ = std::filesystem::path(directory) / name;
    std::filesystem::create_symlink("/proc/self/fd/" + std::to_string(fd_), path_);
  }
  ~MemoryFile() {
    std::filesystem::remove_all(path_.parent_path());
    close(fd_);
  }
  MemoryFile(const MemoryFile&) = delete;
  MemoryFile& operator=(const MemoryFile&) = delete;

  const std::filesystem::path& Fill(const uint8_t* data, size_t size) {
    SY_CHECK(ftruncate(fd_, 0) == 0);
    SY_CHECK(pwrite(fd_, data, size, 0) == static_cast<ssize_t>(size));
    return path_;
  }

 private:
  int fd_;
  std::filesystem::path path_;
};

// Maps what can be mapped, and reads it as a service does before it starts.
inline void UseAll(checkpoint::TensorSource& source) {
  std::vector<checkpoint::TensorRange> ranges;
  for (const checkpoint::TensorInfo& tensor : source.tensors()) {
    const checkpoint::TensorRange range{tensor.name};
    if (source.Map({range}).ok()) ranges.push_back(range);
  }
  for (const checkpoint::TensorRange& range : ranges) SY_CHECK(source.Get(range).ok());
  (void)checkpoint::CheckWeights(source, ranges, nullptr);
  SY_CHECK(checkpoint::ContentDigest(source).ok());
}

}  // namespace switchyard::fuzz
