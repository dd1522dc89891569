// The blocks of one sequence: position p lies in block data()[p / kBlockTokens]. data() never moves
// after construction, so that a StepBatch may point at it.
//
// Not thread-safe: the engine thread owns it.
#pragma once

#include <cstdint>
#include <memory>

#include "router/kv/block_pool.h"
#include "router/kv/kv_storage.h"

namespace switchyard::router {

constexpr int64_t BlocksFor(int64_t tokens) { return (tokens + kBlockTokens - 1) / kBlockTokens; }

class BlockTable {
 public:
  // For up to `max_tokens` positions. `pool` outlives the table.
  BlockTable(BlockPool& pool, int64_t max_tokens);
  ~BlockTable() { Clear(); }
  BlockTable(const BlockTable&) = delete;
  BlockTable& operator=(const BlockTable&) = delete;

  // Blocks for positions [0, tokens); the pool must have the missing ones, tokens <= max_tokens.
  void Grow(int64_t tokens);
  // Gives every block back.
  void Clear();

  int64_t blocks() const { return size_; }
  const int32_t* data() const { return ids_.get(); }

 private:
  BlockPool& pool_;
  const int64_t capacity_;
  int64_t size_ = 0;
  std::unique_ptr<int32_t[]> ids_;  // [capacity_]
};

}  // namespace switchyard::router
