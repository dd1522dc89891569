#include "services/checkpoint/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <functional>

#include "services/base/check.h"
#include "services/base/status.h"

namespace switchyard::checkpoint {
namespace {

// Huge pages belong to small ones of this size; those of others (on Arm) are too large to be read
// at each fault.
constexpr uint64_t kSmallPage = 4096, kHugePage = uint64_t{2} << 20;

uint64_t PageSize() { return static_cast<uint64_t>(sysconf(_SC_PAGESIZE)); }

// Maps a range at an address that lies as far behind a border of huge pages as its offset in the
// file does: elsewhere the kernel can map neither of them as one. Null where it refuses.
std::byte* MapForHugePages(int fd, ByteRange range) {
  const uint64_t span = range.bytes + kHugePage;
  void* const room =
      mmap(nullptr, span, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (room == MAP_FAILED) return nullptr;
  auto* const begin = static_cast<std::byte*>(room);
  const uint64_t skip = (range.offset - reinterpret_cast<uintptr_t>(begin)) % kHugePage;
  void* const data = mmap(begin + skip, range.bytes, PROT_READ, MAP_PRIVATE | MAP_FIXED, fd,
                          static_cast<off_t>(range.offset));
  const int error = errno;
  if (data == MAP_FAILED) {
    munmap(room, span);
    errno = error;
    return nullptr;
  }
  if (skip > 0) munmap(begin, skip);
  if (skip < kHugePage) munmap(begin + skip + range.bytes, kHugePage - skip);
  return static_cast<std::byte*>(data);
}

// The gap size from which on gaps must stay open so that at most max_ranges ranges are left.
uint64_t SmallestOpenGap(const std::vector<ByteRange>& ranges, size_t max_ranges) {
  if (ranges.size() <= max_ranges) return 1;
  std::vector<uint64_t> gaps;
  uint64_t end = ranges.front().offset + ranges.front().bytes;
  for (const ByteRange& range : ranges) {
    if (range.offset > end) gaps.push_back(range.offset - end);
    end = std::max(end, range.offset + range.bytes);
  }
  if (gaps.size() < max_ranges) return 1;
  const auto nth = gaps.begin() + static_cast<ptrdiff_t>(max_ranges) - 1;
  std::nth_element(gaps.begin(), nth, gaps.end(), std::greater<>());
  return *nth + 1;  // equal gaps are closed too, so that the bound holds
}

}  // namespace

std::vector<ByteRange> MergeRanges(std::vector<ByteRange> ranges, uint64_t page,
                                   size_t max_ranges) {
  std::erase_if(ranges, [](const ByteRange& range) { return range.bytes == 0; });
  for (ByteRange& range : ranges) {
    const uint64_t end = (range.offset + range.bytes + page - 1) / page * page;
    range.offset = range.offset / page * page;
    range.bytes = end - range.offset;
  }
  std::ranges::sort(ranges, {}, &ByteRange::offset);
  if (ranges.empty()) return ranges;
  const uint64_t open_gap = SmallestOpenGap(ranges, max_ranges);
  std::vector<ByteRange> out = {ranges.front()};
  for (const ByteRange& range : ranges) {
    ByteRange& last = out.back();
    const uint64_t end = last.offset + last.bytes;
    if (range.offset >= end + open_gap) {
      out.push_back(range);
    } else {
      last.bytes = std::max(end, range.offset + range.bytes) - last.offset;
    }
  }
  return out;
}

absl::StatusOr<std::unique_ptr<MappedFile>> MappedFile::Open(const std::string& path) {
  // O_NONBLOCK: opening a FIFO must not wait for a writer; it has no effect on regular files.
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) return NotFound("{}: {}", path, std::strerror(errno));
  struct stat info;
  if (fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) {
    close(fd);
    return InvalidArgument("{}: is no regular file", path);
  }
  (void)posix_fadvise(fd, 0, 0, POSIX_FADV_RANDOM);  // what is not mapped is read here and there
  return std::unique_ptr<MappedFile>(new MappedFile(path, fd, static_cast<uint64_t>(info.st_size)));
}

MappedFile::~MappedFile() {
  for (const Mapping& mapping : mappings_) munmap(mapping.data, mapping.range.bytes);
  close(fd_);
}

// Small reads all over a file would leave a small page in most of its huge ones, which then could
// not be read as such: pages of which none was cached before are given back.
absl::Status MappedFile::Read(uint64_t offset, void* to, size_t bytes) const {
  if (offset > size_ || bytes > size_ - offset) {
    return OutOfRange("{}: bytes {} to {} lie beyond its end at {}", path_, offset, offset + bytes,
                      size_);
  }
  if (bytes == 0) return absl::OkStatus();
  const iovec whole = {to, bytes};
  const ssize_t cached = preadv2(fd_, &whole, 1, static_cast<off_t>(offset), RWF_NOWAIT);
  if (cached == static_cast<ssize_t>(bytes)) return absl::OkStatus();
  const bool absent = cached < 0 && errno == EAGAIN;  // else some were there, or nobody can tell
  SY_RETURN_IF_ERROR(ReadAll(offset, static_cast<char*>(to), bytes));
  if (!absent) return absl::OkStatus();
  const ByteRange pages = MergeRanges({{offset, bytes}}, PageSize(), 1).front();
  (void)posix_fadvise(fd_, static_cast<off_t>(pages.offset), static_cast<off_t>(pages.bytes),
                      POSIX_FADV_DONTNEED);
  return absl::OkStatus();
}

absl::Status MappedFile::ReadAll(uint64_t offset, char* out, size_t bytes) const {
  while (bytes > 0) {
    const ssize_t got = pread(fd_, out, bytes, static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) {
      return DataLoss("{}: cannot read {} bytes at {}: {}", path_, bytes, offset,
                      got == 0 ? "the file became shorter" : std::strerror(errno));
    }
    out += got;
    offset += static_cast<uint64_t>(got);
    bytes -= static_cast<size_t>(got);
  }
  return absl::OkStatus();
}

absl::Status MappedFile::Map(std::vector<ByteRange> ranges, size_t max_mappings) {
  for (const ByteRange& range : ranges) {
    SY_CHECK(range.offset <= size_ && range.bytes <= size_ - range.offset);
  }
  std::erase_if(ranges, [this](const ByteRange& range) { return Find(range) != nullptr; });
  batches_.push_back(mappings_.size());
  for (const ByteRange& range : MergeRanges(std::move(ranges), PageSize(), max_mappings)) {
    std::byte* const data = MapForHugePages(fd_, range);
    if (data == nullptr) {
      return ResourceExhausted("{}: cannot map {} bytes at {}: {}", path_, range.bytes,
                               range.offset, std::strerror(errno));
    }
    // What is not in the page cache yet is then read some MiB at a time, where the file system has
    // large folios as huge pages that are mapped as one: fewer faults while loading, and no page to
    // look up every 4 KiB of a row. A hint, so its failure does not matter.
    if (PageSize() == kSmallPage && range.bytes >= kHugePage) {
      (void)madvise(data, range.bytes, MADV_HUGEPAGE);
    }
    mappings_.push_back({range, data});
  }
  return absl::OkStatus();
}

const std::byte* MappedFile::Find(ByteRange range) const {
  for (size_t b = 0; b < batches_.size(); ++b) {
    const auto begin = mappings_.begin() + static_cast<ptrdiff_t>(batches_[b]);
    const auto end = b + 1 < batches_.size()
                         ? mappings_.begin() + static_cast<ptrdiff_t>(batches_[b + 1])
                         : mappings_.end();
    auto after = std::upper_bound(begin, end, range.offset, [](uint64_t offset, const Mapping& m) {
      return offset < m.range.offset;
    });
    if (after == begin) continue;
    const Mapping& m = *std::prev(after);
    if (range.offset + range.bytes <= m.range.offset + m.range.bytes) {
      return m.data + (range.offset - m.range.offset);
    }
  }
  return nullptr;
}

absl::Status MappedFile::Populate(const std::byte* data, uint64_t bytes) const {
  if (bytes == 0) return absl::OkStatus();
  const uint64_t page = PageSize(), skew = reinterpret_cast<uintptr_t>(data) % page;
  auto* const first = const_cast<std::byte*>(data) - skew;
  // What a touch would be killed for is an error here.
  if (madvise(first, bytes + skew, MADV_POPULATE_READ) == 0) return absl::OkStatus();
  if (errno == EINVAL) return CheckLength();  // before Linux 5.14
  return DataLoss(
      "{}: cannot be read: {}", path_,
      errno == EFAULT ? "the file became shorter, or the disk has an error" : std::strerror(errno));
}

absl::Status MappedFile::CheckLength() const {
  struct stat info;
  if (fstat(fd_, &info) == 0 && static_cast<uint64_t>(info.st_size) >= size_) {
    return absl::OkStatus();
  }
  return DataLoss("{}: the file became shorter", path_);
}

void MappedFile::Evict(const std::byte* data, uint64_t bytes) {
  const uint64_t page = PageSize(), at = reinterpret_cast<uintptr_t>(data);
  const uint64_t first = (at + page - 1) / page * page, end = (at + bytes) / page * page;
  if (first >= end) return;
  auto* const pages = const_cast<std::byte*>(data) + (first - at);
  // Out of memory those that this process alone has mapped, then out of its tables the others.
  (void)madvise(pages, end - first, MADV_PAGEOUT);
  (void)madvise(pages, end - first, MADV_DONTNEED);
}

uint64_t MappedFile::mapped_bytes() const {
  uint64_t bytes = 0;
  for (const Mapping& mapping : mappings_) bytes += mapping.range.bytes;
  return bytes;
}

}  // namespace switchyard::checkpoint
