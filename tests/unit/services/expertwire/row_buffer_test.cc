#include "services/expertwire/row_buffer.h"

#include <gtest/gtest.h>

#include <cstring>
#include <numeric>

namespace switchyard::expertwire {
namespace {

TEST(RowBufferPool, LendsABlockAgainOnceNobodyHoldsIt) {
  RowBufferPool pool;
  RowBuffer first = pool.Take(5000);
  const std::byte* block = first.data();
  EXPECT_EQ(reinterpret_cast<uintptr_t>(block) % 64, 0u);
  RowBuffer slice = first.Slice(64, 10);
  first = RowBuffer();
  EXPECT_NE(pool.Take(5000).data(), block);
  slice = RowBuffer();
  EXPECT_EQ(pool.Take(8192).data(), block);  // of the same power of two
}

// Gives two blocks, and counts those that come back.
class TwoBlocks final : public BlockSource {
 public:
  MemoryKind kind() const override { return MemoryKind::kPinned; }
  std::byte* Allocate(size_t bytes) override {
    return given++ < 2 ? static_cast<std::byte*>(::operator new (bytes, std::align_val_t{64}))
                       : nullptr;
  }
  void Free(std::byte* block) override {
    ++freed;
    ::operator delete (block, std::align_val_t{64});
  }
  int given = 0, freed = 0;
};

TEST(RowBufferPool, LargeBlocksAreOfTheSourceWhileItHasAny) {
  const auto source = std::make_shared<TwoBlocks>();
  RowBuffer outlives;
  {
    RowBufferPool pool(1 << 20, source);
    EXPECT_EQ(pool.Take(100).kind(), MemoryKind::kHost);
    EXPECT_EQ(source->given, 0);
    RowBuffer a = pool.Take(5000), b = pool.Take(70000), c = pool.Take(5000);
    EXPECT_EQ(a.kind(), MemoryKind::kPinned);
    EXPECT_EQ(b.Slice(64, 100).kind(), MemoryKind::kPinned);
    EXPECT_EQ(c.kind(), MemoryKind::kHost);
    const std::byte* const block = a.data();
    a = RowBuffer();
    outlives = pool.Take(6000);  // the same
    EXPECT_EQ(outlives.data(), block);
    EXPECT_EQ(outlives.kind(), MemoryKind::kPinned);
    EXPECT_EQ(source->freed, 0);
  }
  EXPECT_EQ(source->freed, 0);  // the last buffer keeps its pool
  outlives = RowBuffer();
  EXPECT_EQ(source->freed, 2);
}

TEST(RowBufferPool, KeepsNoMoreThanItMay) {
  RowBufferPool none(0);
  RowBuffer a = none.Take(100);
  std::memset(a.mutable_data(), 1, 100);
  a = RowBuffer();  // freed, as sanitizers can tell
  EXPECT_EQ(none.Take(100).bytes(), 100u);
}

TEST(RowBufferPool, BuffersAndListsOutliveIt) {
  RowBuffer buffer;
  PooledVector<uint32_t> list;
  {
    RowBufferPool pool;
    buffer = pool.Take(100);
    list = pool.List<uint32_t>();
    list.resize(1000);
  }
  std::memset(buffer.mutable_data(), 7, 100);
  std::iota(list.begin(), list.end(), 0u);
  list.resize(5000, 3);
  EXPECT_EQ(list[999], 999u);
}

TEST(RowBufferPool, AListKeepsItsMemoryWhenItMoves) {
  RowBufferPool pool;
  PooledVector<uint32_t> list = pool.List<uint32_t>();
  list.assign(100, 1);
  const uint32_t* at = list.data();
  PooledVector<uint32_t> other{9, 9};  // of the heap
  other = std::move(list);
  EXPECT_EQ(other.data(), at);
  const PooledVector<uint32_t> copy = other;  // nobody's but its owner's
  EXPECT_EQ(copy.get_allocator().pool(), nullptr);
  EXPECT_EQ(copy.size(), 100u);
  other = PooledVector<uint32_t>();
  PooledVector<uint32_t> again = pool.List<uint32_t>();
  again.reserve(100);
  EXPECT_EQ(again.data(), at);
}

}  // namespace
}  // namespace switchyard::expertwire
