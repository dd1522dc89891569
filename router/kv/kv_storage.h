// The memory of the paged KV cache: blocks of kBlockTokens tokens of the layers of one group, as
// services/model/kv_layout.h groups them. Each slot of a block lies in an array of its own, which
// the layers with that slot share: a block is one group's at a time. Who owns which block is
// block_pool.h's matter. A token's record is KvRecordBytes of services/model/memory_plan.h. Pages
// are touched first when a block is written.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "services/model/kv_layout.h"
#include "services/model/spec.h"
#include "services/tensor/dtype.h"

namespace switchyard::router {

// Tokens of a block; attention walks blocks at absolute multiples of it, so it is part of the
// numerics and not a knob.
inline constexpr int kBlockTokens = 32;

class KvStorage {
 public:
  // dtype: kF32, kBF16, kI8 or kF8E4M3. RESOURCE_EXHAUSTED if the address range cannot be had.
  static absl::StatusOr<KvStorage> Create(const ModelSpec& spec, DType dtype, int64_t blocks);
  ~KvStorage();
  KvStorage(KvStorage&&) noexcept;
  KvStorage& operator=(KvStorage&&) noexcept;

  // From block to block of a slot.
  static int64_t BlockStrideBytes(const ModelSpec& spec, DType dtype);
  // Bytes of one block, in all of its slots.
  static int64_t BlockBytes(const ModelSpec& spec, DType dtype);

  DType dtype() const { return dtype_; }
  int64_t blocks() const { return blocks_; }
  int groups() const { return layout_.groups(); }
  int group(int layer) const { return layout_.layers[static_cast<size_t>(layer)].group; }
  // Block 0, in the slot of this layer.
  std::byte* layer(int layer) {
    return base_ + layout_.layers[static_cast<size_t>(layer)].slot * slot_bytes_;
  }
  int64_t block_stride_bytes() const { return block_stride_bytes_; }
  // Where the token at `position` of the sequence with this block table (of the layer's group)
  // lies.
  std::byte* Record(int layer, const int32_t* block_table, int32_t position) {
    return this->layer(layer) + block_table[position / kBlockTokens] * block_stride_bytes_ +
           position % kBlockTokens * record_bytes_;
  }
  // In every slot.
  void CopyBlock(int32_t from, int32_t to);

 private:
  KvStorage() = default;
  std::byte* base_ = nullptr;
  size_t bytes_ = 0;
  int64_t slot_bytes_ = 0, block_stride_bytes_ = 0, record_bytes_ = 0, blocks_ = 0;
  DType dtype_ = DType::kBF16;
  KvLayout layout_;
};

}  // namespace switchyard::router
