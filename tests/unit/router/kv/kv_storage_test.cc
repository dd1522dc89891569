#include "router/kv/kv_storage.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <utility>

#include "services/base/text.h"

namespace switchyard::router {
namespace {

ModelSpec Gqa() {
  ModelSpec spec;
  spec.attention.kind = AttentionKind::kGqa;
  spec.attention.heads = 4;
  spec.attention.kv_heads = 2;
  spec.attention.head_dim = 24;
  spec.layers.resize(3);
  return spec;
}

ModelSpec Mla() {
  ModelSpec spec;
  spec.attention.kind = AttentionKind::kMla;
  spec.attention.heads = 6;
  spec.attention.kv_lora_rank = 64;
  spec.attention.qk_rope_head_dim = 16;
  spec.layers.resize(5);
  return spec;
}

TEST(KvStorageTest, RecordHoldsKeysAndValuesOrTheLatent) {
  EXPECT_EQ(KvStorage::BlockBytes(Gqa(), DType::kBF16), 3 * 32 * 96 * 2);
  EXPECT_EQ(KvStorage::BlockBytes(Gqa(), DType::kI8), 3 * 32 * 4 * (24 + 2));
  EXPECT_EQ(KvStorage::BlockBytes(Mla(), DType::kF32), 5 * 32 * 80 * 4);
}

TEST(KvStorageTest, LayersAndBlocksAreDisjointAndWritable) {
  auto storage = KvStorage::Create(Mla(), DType::kBF16, 7);
  ASSERT_TRUE(storage.ok()) << storage.status();
  EXPECT_EQ(storage->blocks(), 7);
  EXPECT_EQ(storage->layer(1) - storage->layer(0), 7 * storage->block_stride_bytes());
  EXPECT_EQ(reinterpret_cast<uintptr_t>(storage->layer(3)) % 64, 0u);
  std::byte* last = storage->layer(4) + 7 * storage->block_stride_bytes() - 1;
  *storage->layer(0) = std::byte{1};
  *last = std::byte{2};
  KvStorage moved = *std::move(storage);
  EXPECT_EQ(*moved.layer(0), std::byte{1});
  EXPECT_EQ(*(moved.layer(4) + 7 * moved.block_stride_bytes() - 1), std::byte{2});
}

TEST(KvStorageTest, RecordsOfABlockLieBesideEachOther) {
  auto storage = KvStorage::Create(Mla(), DType::kF8E4M3, 7);
  ASSERT_TRUE(storage.ok()) << storage.status();
  const int32_t table[] = {5, 2};
  const int64_t record = 80 + 3 * 2;
  EXPECT_EQ(storage->Record(3, table, 31) - storage->layer(3),
            5 * storage->block_stride_bytes() + 31 * record);
  EXPECT_EQ(storage->Record(3, table, 33) - storage->layer(3),
            2 * storage->block_stride_bytes() + record);
}

TEST(KvStorageTest, GroupsOfLayersTakeTurnsInABlock) {
  ModelSpec spec = Gqa();
  spec.layers = {{.window = 8}, {}, {.window = 8}, {}};
  EXPECT_EQ(KvStorage::BlockBytes(spec, DType::kBF16), 2 * 32 * 96 * 2);
  auto storage = KvStorage::Create(spec, DType::kBF16, 5);
  ASSERT_TRUE(storage.ok()) << storage.status();
  ASSERT_EQ(storage->groups(), 2);
  EXPECT_EQ(storage->group(0), storage->group(2));
  EXPECT_EQ(storage->group(1), storage->group(3));
  EXPECT_NE(storage->group(0), storage->group(1));
  EXPECT_EQ(storage->layer(0), storage->layer(1));
  EXPECT_EQ(storage->layer(2), storage->layer(3));
  EXPECT_EQ(storage->layer(2) - storage->layer(0), 5 * storage->block_stride_bytes());
  // A copy is of all layers of the block's group.
  const int32_t from = 4, to = 1;
  *storage->Record(1, &from, 7) = std::byte{3};
  *storage->Record(3, &from, 9) = std::byte{4};
  storage->CopyBlock(from, to);
  EXPECT_EQ(*storage->Record(1, &to, 7), std::byte{3});
  EXPECT_EQ(*storage->Record(3, &to, 9), std::byte{4});
}

TEST(KvStorageTest, ImpossibleSizesAreErrorsWithTheNumbers) {
  EXPECT_EQ(KvStorage::Create(Gqa(), DType::kBF16, 0).status().code(),
            absl::StatusCode::kInvalidArgument);
  // Overflows 64 bits, and then more than any address space.
  for (int64_t blocks : {std::numeric_limits<int64_t>::max() / 2, int64_t{1} << 44}) {
    const absl::Status status = KvStorage::Create(Gqa(), DType::kBF16, blocks).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
    EXPECT_THAT(ToStd(status.message()), testing::HasSubstr(std::to_string(blocks)));
  }
}

}  // namespace
}  // namespace switchyard::router
