// Shared memory between two ends: the bytes, who wakes whom, and what a hostile end can do.
#include "services/expertwire/shared_pipe.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <random>
#include <string>
#include <thread>
#include <vector>

#include "services/expertwire/memory_mailbox.h"

namespace switchyard::expertwire {
namespace {

constexpr size_t kRing = SharedPipe::kRingBytes;

struct Ends {
  std::unique_ptr<SharedPipe> a, b;
};

Ends MakeEnds() {
  Ends ends;
  ends.a = *SharedPipe::Create();
  ends.b = *SharedPipe::Adopt(UniqueFd(dup(ends.a->fd())));
  return ends;
}

TEST(SharedPipe, BytesComeInOrderBothWays) {
  Ends ends = MakeEnds();
  std::string there(5, '?'), back(3, '?');
  EXPECT_EQ(*ends.a->Write("hello", 5), 5u);
  EXPECT_EQ(*ends.b->Write("abc", 3), 3u);
  EXPECT_EQ(*ends.b->Read(there.data(), 5), 5u);
  EXPECT_EQ(*ends.a->Read(back.data(), 3), 3u);
  EXPECT_EQ(there, "hello");
  EXPECT_EQ(back, "abc");
  EXPECT_EQ(*ends.a->Read(back.data(), 3), 0u);
}

TEST(SharedPipe, AFullRingTakesNoMoreUntilSomethingWasRead) {
  Ends ends = MakeEnds();
  std::vector<char> bytes(kRing + 10, 'x');
  EXPECT_EQ(*ends.a->Write(bytes.data(), bytes.size()), kRing);
  EXPECT_EQ(*ends.a->Write(bytes.data(), 1), 0u);
  EXPECT_EQ(*ends.b->Read(bytes.data(), 7), 7u);
  EXPECT_EQ(*ends.a->Write(bytes.data(), bytes.size()), 7u);
}

// Two threads, pieces of all sizes, several times around the ring, sleeping whenever there is
// nothing to do: no byte is lost and nobody sleeps for ever.
TEST(SharedPipe, AStreamBetweenSleepyThreads) {
  Ends ends = MakeEnds();
  constexpr size_t kTotal = 20 * kRing + 123;
  std::atomic<int> told = 0;  // rings that should go over gRPC: none
  std::thread writer([&] {
    std::mt19937 random(1);
    std::vector<unsigned char> piece;
    for (size_t sent = 0; sent < kTotal;) {
      piece.resize(std::min<size_t>(1 + random() % (kRing / 3), kTotal - sent));
      for (size_t i = 0; i < piece.size(); ++i)
        piece[i] = static_cast<unsigned char>((sent + i) % 251);
      for (size_t done = 0; done < piece.size();) {
        const size_t n = *ends.a->Write(piece.data() + done, piece.size() - done);
        done += n;
        told += ends.a->MustTell() ? 1 : 0;
        const Bell bell = ends.a->bell();
        if (n == 0 && ends.a->Arm(/*wants_room=*/true, /*by_bell=*/true)) {
          ASSERT_TRUE(SleepOnBells({&bell, 1}, absl::Now() + absl::Seconds(60)));
        }
      }
      sent += piece.size();
    }
  });
  std::mt19937 random(2);
  std::vector<unsigned char> piece(kRing);
  size_t got = 0;
  const absl::Time bound = absl::Now() + absl::Seconds(50);
  while (got < kTotal && absl::Now() < bound) {
    const size_t n = *ends.b->Read(piece.data(), 1 + random() % (kRing / 2));
    for (size_t i = 0; i < n; ++i) ASSERT_EQ(piece[i], (got + i) % 251);
    got += n;
    told += ends.b->MustTell() ? 1 : 0;
    const Bell bell = ends.b->bell();
    if (n == 0 && ends.b->Arm(/*wants_room=*/false, /*by_bell=*/true)) {
      ASSERT_TRUE(SleepOnBells({&bell, 1}, absl::Now() + absl::Seconds(60)));
    }
  }
  writer.join();
  EXPECT_EQ(got, kTotal);
  EXPECT_EQ(told.load(), 0);
}

TEST(SharedPipe, WhoSleepsIsToldOnceAndOnlyOfNews) {
  Ends ends = MakeEnds();
  char byte = 'x';
  EXPECT_FALSE(ends.a->MustTell());
  EXPECT_TRUE(ends.b->Arm(false, /*by_bell=*/false));
  EXPECT_FALSE(ends.a->MustTell());  // nothing was written
  EXPECT_EQ(*ends.a->Write(&byte, 1), 1u);
  EXPECT_TRUE(ends.a->MustTell());
  EXPECT_FALSE(ends.a->MustTell());
  EXPECT_FALSE(ends.b->Arm(false, false));  // there is something to read
  EXPECT_EQ(*ends.b->Read(&byte, 1), 1u);
  EXPECT_TRUE(ends.b->Arm(false, false));
}

TEST(SharedPipe, OnlyItsOwnSealedMemoryIsAdopted) {
  EXPECT_FALSE(SharedPipe::Adopt(UniqueFd(open("/dev/zero", O_RDWR))).ok());
  UniqueFd small(memfd_create("small", MFD_ALLOW_SEALING));
  ASSERT_EQ(ftruncate(small.get(), 4096), 0);
  ASSERT_EQ(fcntl(small.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW), 0);
  EXPECT_FALSE(SharedPipe::Adopt(std::move(small)).ok());
  const auto whole = *SharedPipe::Create();
  const off_t size = lseek(whole->fd(), 0, SEEK_END);
  UniqueFd loose(memfd_create("loose", MFD_ALLOW_SEALING));
  ASSERT_EQ(ftruncate(loose.get(), size), 0);
  EXPECT_FALSE(SharedPipe::Adopt(UniqueFd(dup(loose.get()))).ok());  // it could shrink
  ASSERT_EQ(fcntl(loose.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW), 0);
  EXPECT_FALSE(SharedPipe::Adopt(std::move(loose)).ok());  // no pipe was made in it
  EXPECT_NE(ftruncate(whole->fd(), 0), 0);
}

TEST(SharedPipe, APeerThatWritesNonsenseIsFoundOut) {
  Ends ends = MakeEnds();
  const auto size = static_cast<size_t>(lseek(ends.a->fd(), 0, SEEK_END));
  void* memory = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, ends.a->fd(), 0);
  ASSERT_NE(memory, MAP_FAILED);
  std::fill_n(static_cast<unsigned char*>(memory), 4096, 0xff);
  char byte = 'x';
  EXPECT_TRUE(absl::IsDataLoss(ends.a->Read(&byte, 1).status()));
  EXPECT_TRUE(absl::IsDataLoss(ends.a->Write(&byte, 1).status()));
  munmap(memory, size);
}

TEST(MemoryMailbox, EachFindsWhatWasLeftForIt) {
  const auto mailbox = *MemoryMailbox::Open();
  const auto one = *SharedPipe::Create(), two = *SharedPipe::Create();
  ASSERT_TRUE(LeaveMemory(mailbox->name(), 1, one->fd()).ok());
  ASSERT_TRUE(LeaveMemory(mailbox->name(), 2, two->fd()).ok());
  absl::StatusOr<UniqueFd> fd = mailbox->Take(2);
  ASSERT_TRUE(fd.ok());
  const auto other = *SharedPipe::Adopt(*std::move(fd));
  char byte = 'b';
  EXPECT_EQ(*two->Write(&byte, 1), 1u);
  EXPECT_EQ(*other->Read(&byte, 1), 1u);
  EXPECT_TRUE(mailbox->Take(1).ok());
  EXPECT_TRUE(absl::IsNotFound(mailbox->Take(1).status()));
  EXPECT_TRUE(absl::IsUnavailable(LeaveMemory("switchyard-nobody", 1, one->fd())));
  EXPECT_TRUE(absl::IsInvalidArgument(LeaveMemory(std::string(200, 'x'), 1, one->fd())));
}

TEST(MemoryMailbox, StrangersDatagramsPushOutOnlyTheOldest) {
  const auto mailbox = *MemoryMailbox::Open();
  const auto pipe = *SharedPipe::Create();
  for (uint64_t nonce = 1; nonce <= 200; ++nonce) {
    ASSERT_TRUE(LeaveMemory(mailbox->name(), nonce, pipe->fd()).ok());
    EXPECT_TRUE(absl::IsNotFound(mailbox->Take(1000).status()));
  }
  EXPECT_TRUE(absl::IsNotFound(mailbox->Take(1).status()));
  EXPECT_TRUE(mailbox->Take(200).ok());
}

}  // namespace
}  // namespace switchyard::expertwire
