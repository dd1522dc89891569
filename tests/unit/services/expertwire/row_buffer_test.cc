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
