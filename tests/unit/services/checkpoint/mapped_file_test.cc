#include "services/checkpoint/mapped_file.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include <cstring>

#include "services/base/text.h"
#include "tests/unit/services/checkpoint/safetensors_files.h"

namespace switchyard::checkpoint {
namespace {

using testing::HasSubstr;

bool operator==(const ByteRange& a, const ByteRange& b) {
  return a.offset == b.offset && a.bytes == b.bytes;
}

TEST(MergeRanges, RoundsToPagesAndJoinsNeighbours) {
  const auto merged = MergeRanges({{5000, 10}, {0, 4096}, {12000, 1}, {70, 0}}, 4096, 100);
  ASSERT_EQ(merged.size(), 1u);
  EXPECT_TRUE(merged[0] == (ByteRange{0, 12288}));
  EXPECT_EQ(MergeRanges({{0, 1}, {8192, 1}}, 4096, 100).size(), 2u);
  EXPECT_TRUE(MergeRanges({}, 4096, 1).empty());
}

TEST(MergeRanges, FillsTheSmallestGapsToKeepTheBound) {
  // Gaps of 1, 3 and 2 pages.
  const std::vector<ByteRange> ranges = {{0, 10}, {2 * 10, 10}, {6 * 10, 10}, {9 * 10, 10}};
  auto merged = MergeRanges(ranges, 10, 3);
  ASSERT_EQ(merged.size(), 3u);
  EXPECT_TRUE(merged[0] == (ByteRange{0, 30}));
  merged = MergeRanges(ranges, 10, 2);
  ASSERT_EQ(merged.size(), 2u);
  EXPECT_TRUE(merged[1] == (ByteRange{60, 40}));
  EXPECT_EQ(MergeRanges(ranges, 10, 1).size(), 1u);
  // Equal gaps cannot be told apart: the bound holds all the same.
  std::vector<ByteRange> even;
  for (uint64_t i = 0; i < 1000; ++i) even.push_back({i * 20, 10});
  EXPECT_LE(MergeRanges(even, 10, 7).size(), 7u);
}

TEST(MappedFile, MapsOnlyWhatIsAskedFor) {
  const TempDirectory dir;
  std::string bytes(40 * 4096, 'x');
  bytes[20 * 4096 + 5] = 'y';
  WriteFile(dir / "f", bytes);
  auto file = *MappedFile::Open(dir / "f");
  ASSERT_TRUE(file->Map({{20 * 4096, 100}}, 10).ok());
  EXPECT_EQ(file->mapped_bytes(), 4096u);
  EXPECT_EQ(static_cast<char>(*file->Find({20 * 4096 + 5, 1})), 'y');
  EXPECT_EQ(file->Find({0, 1}), nullptr);
  EXPECT_EQ(file->Find({20 * 4096, 4097}), nullptr);
  const std::byte* before = file->Find({20 * 4096, 1});
  // A later call keeps what is mapped and adds the rest.
  ASSERT_TRUE(file->Map({{20 * 4096, 100}, {0, 1}, {39 * 4096, 4096}}, 10).ok());
  EXPECT_EQ(file->mappings(), 3u);
  EXPECT_EQ(file->Find({20 * 4096, 1}), before);
  EXPECT_NE(file->Find({0, 1}), nullptr);
  EXPECT_NE(file->Find({39 * 4096, 4096}), nullptr);
}

// Of the page at `data`, whether this process has it in its tables.
bool InTables(const std::byte* data) {
  const int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
  uint64_t entry = 0;
  const auto page = static_cast<off_t>(reinterpret_cast<uintptr_t>(data) / 4096 * sizeof(entry));
  EXPECT_EQ(pread(fd, &entry, sizeof(entry), page), static_cast<ssize_t>(sizeof(entry)));
  close(fd);
  return (entry >> 63) != 0;
}

TEST(MappedFile, PagesComeAndGoAsTold) {
  if (sysconf(_SC_PAGESIZE) != 4096) GTEST_SKIP() << "pages of another size";
  const TempDirectory dir;
  WriteFile(dir / "f", std::string(40 * 4096, 'x'));
  auto file = *MappedFile::Open(dir / "f");
  ASSERT_TRUE(file->Map({{0, 40 * 4096}}, 10).ok());
  const std::byte* data = file->Find({4096 + 100, 30 * 4096});
  ASSERT_TRUE(file->Populate(data, 30 * 4096).ok());
  EXPECT_TRUE(InTables(data) && InTables(data + 30 * 4096 - 1));
  MappedFile::Evict(data, 30 * 4096);
  EXPECT_FALSE(InTables(data + 4096) || InTables(data + 29 * 4096));
  EXPECT_TRUE(InTables(data));  // a page that belongs to others too
  EXPECT_EQ(static_cast<char>(data[4096]), 'x');
  MappedFile::Evict(data, 10);
  EXPECT_TRUE(file->Populate(data, 0).ok());
}

TEST(MappedFile, AFileThatBecameShorterIsAnErrorOfPopulate) {
  const TempDirectory dir;
  WriteFile(dir / "f", std::string(40 * 4096, 'x'));
  auto file = *MappedFile::Open(dir / "f");
  ASSERT_TRUE(file->Map({{0, 40 * 4096}}, 10).ok());
  ASSERT_EQ(truncate((dir / "f").c_str(), 10 * 4096), 0);
  EXPECT_TRUE(file->Populate(file->Find({0, 4096}), 10 * 4096).ok());
  const absl::Status status = file->Populate(file->Find({0, 4096}), 11 * 4096);
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(ToStd(status.message()), HasSubstr("became shorter"));
}

// Else the kernel could not map a huge page of the file as one.
TEST(MappedFile, LiesAsFarBehindAHugePageAsInTheFile) {
  const TempDirectory dir;
  constexpr uint64_t kMiB = 1 << 20, kFirst = kMiB + 4096, kBytes = 3 * kMiB;
  std::string bytes(6 * kMiB, 'x');
  bytes[kFirst] = 'a';
  bytes[kFirst + kBytes - 1] = 'z';
  WriteFile(dir / "f", bytes);
  auto file = *MappedFile::Open(dir / "f");
  for (const ByteRange range : {ByteRange{kFirst, kBytes}, ByteRange{0, 4096}}) {
    ASSERT_TRUE(file->Map({range}, 1).ok());
    EXPECT_EQ(reinterpret_cast<uintptr_t>(file->Find(range)) % (2 * kMiB), range.offset);
  }
  const std::byte* data = file->Find({kFirst, kBytes});
  EXPECT_EQ(static_cast<char>(data[0]), 'a');
  EXPECT_EQ(static_cast<char>(data[kBytes - 1]), 'z');
}

TEST(MappedFile, ReadsLeaveThePageCacheAsItWas) {
  const TempDirectory dir;
  constexpr int64_t kPage = 4096, kAt = 32 * kPage;
  WriteFile(dir / "f", std::string(2 * kAt, 'x'));
  const int fd = open((dir / "f").c_str(), O_RDONLY);
  ASSERT_GE(fd, 0);
  void* const page = mmap(nullptr, kPage, PROT_READ, MAP_SHARED, fd, kAt);
  ASSERT_NE(page, MAP_FAILED);
  const auto cached = [&] {
    unsigned char resident = 0;
    return mincore(page, kPage, &resident) == 0 && (resident & 1) != 0;
  };
  const auto file = *MappedFile::Open(dir / "f");
  char byte = 0;
  ASSERT_EQ(pread(fd, &byte, 1, kAt), 1);
  ASSERT_TRUE(file->Read(kAt + 5, &byte, 1).ok());
  EXPECT_TRUE(cached());
  const iovec one = {&byte, 1};
  const bool tells = preadv2(fd, &one, 1, kAt, RWF_NOWAIT) == 1;
  ASSERT_EQ(fsync(fd), 0);
  ASSERT_EQ(posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED), 0);
  const bool forgets = !cached();
  ASSERT_TRUE(file->Read(kAt + 5, &byte, 1).ok());
  EXPECT_EQ(byte, 'x');
  if (tells && forgets) {  // not every file system does
    EXPECT_FALSE(cached());
  }
  munmap(page, kPage);
  close(fd);
}

TEST(MappedFile, RefusesWhatIsNoRegularFile) {
  const TempDirectory dir;
  EXPECT_EQ(MappedFile::Open(dir / "none").status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(ToStd(MappedFile::Open(dir.path()).status().message())),
              HasSubstr("no regular file"));
  ASSERT_EQ(mkfifo((dir / "fifo").c_str(), 0600), 0);
  EXPECT_THAT(std::string(ToStd(MappedFile::Open(dir / "fifo").status().message())),
              HasSubstr("no regular file"));
}

TEST(MappedFile, ReadsWithinBounds) {
  const TempDirectory dir;
  WriteFile(dir / "f", "hello");
  const auto file = *MappedFile::Open(dir / "f");
  char text[6] = {};
  ASSERT_TRUE(file->Read(1, text, 4).ok());
  EXPECT_STREQ(text, "ello");
  EXPECT_EQ(file->Read(2, text, 4).code(), absl::StatusCode::kOutOfRange);
  EXPECT_EQ(file->Read(UINT64_MAX, text, 4).code(), absl::StatusCode::kOutOfRange);
}

}  // namespace
}  // namespace switchyard::checkpoint
