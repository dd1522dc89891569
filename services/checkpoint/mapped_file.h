// A read-only file of which chosen byte ranges are mapped. Ranges that share or touch pages share a
// mapping, and gaps are mapped too where the number of mappings would grow beyond a bound (address
// space only, but for what the kernel reads around a page that is touched, up to some MiB).
//
// The file must not be truncated while it is mapped (the kernel answers with SIGBUS); replace a
// checkpoint by renaming a new one into its place.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace switchyard::checkpoint {

struct ByteRange {
  uint64_t offset = 0;
  uint64_t bytes = 0;
};

// Not thread-safe by itself; Find is const and may run concurrently with itself.
class MappedFile {
 public:
  // Follows symbolic links. NOT_FOUND, or INVALID_ARGUMENT if it is no regular file.
  static absl::StatusOr<std::unique_ptr<MappedFile>> Open(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const std::string& path() const { return path_; }
  uint64_t size() const { return size_; }

  // Copies bytes without mapping them; what was not in the page cache is not left there either.
  // OUT_OF_RANGE beyond the end, DATA_LOSS if the file cannot be read.
  absl::Status Read(uint64_t offset, void* to, size_t bytes) const;

  // Maps ranges (inside the file: programmer's error otherwise) in addition to those mapped before,
  // in at most max_mappings further mappings. RESOURCE_EXHAUSTED if the kernel refuses.
  absl::Status Map(std::vector<ByteRange> ranges, size_t max_mappings);
  // The address of a range that lies inside one mapping, null if none holds it.
  const std::byte* Find(ByteRange range) const;
  // Brings mapped bytes into memory. DATA_LOSS where the file cannot be read, or has become
  // shorter. Both are thread-safe: they look at no mapping but the one that `data` (of Find) lies
  // in.
  absl::Status Populate(const std::byte* data, uint64_t bytes) const;
  // Lets the pages that lie inside leave memory, also the page cache where nobody else uses them.
  static void Evict(const std::byte* data, uint64_t bytes);
  size_t mappings() const { return mappings_.size(); }
  uint64_t mapped_bytes() const;

 private:
  struct Mapping {
    ByteRange range;  // page-aligned
    std::byte* data = nullptr;
  };

  MappedFile(std::string path, int fd, uint64_t size)
      : path_(std::move(path)), fd_(fd), size_(size) {}

  absl::Status CheckLength() const;
  absl::Status ReadAll(uint64_t offset, char* out, size_t bytes) const;

  const std::string path_;
  const int fd_;
  const uint64_t size_;
  std::vector<Mapping> mappings_;  // in order of mapping: each Map call's are sorted
  std::vector<size_t> batches_;    // index in mappings_ where each Map call's begin
};

// Page-rounded union of `ranges`, with gaps filled, smallest first, until at most `max_ranges` are
// left. Sorted.
std::vector<ByteRange> MergeRanges(std::vector<ByteRange> ranges, uint64_t page, size_t max_ranges);

}  // namespace switchyard::checkpoint
