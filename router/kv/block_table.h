// The blocks of one sequence: position p lies in block data()[p / kBlockTokens]. The first blocks
// may be shared with other sequences of the same prefix; whoever writes owns its block alone.
// data() never moves after construction, so that a StepBatch may point at it.
//
// With a window, the blocks that no later token sees are given back: data() is -1 there.
//
// Not thread-safe: the engine thread owns it.
#pragma once

#include <cstdint>
#include <memory>

#include "router/kv/block_pool.h"
#include "router/kv/kv_storage.h"

namespace switchyard::router {

constexpr int64_t BlocksFor(int64_t tokens) { return (tokens + kBlockTokens - 1) / kBlockTokens; }

// The first block that the token at `position` or a later one sees. window: as LayerSpec's.
constexpr int64_t FirstBlockSeen(int64_t position, int64_t window) {
  return window > 0 && position >= window ? (position - window + 1) / kBlockTokens : 0;
}

class BlockTable {
 public:
  // For up to `max_tokens` positions, of which a token sees the last `window` in every layer; 0:
  // all. `pool` outlives the table.
  BlockTable(BlockPool& pool, int64_t max_tokens, int64_t window = 0);
  ~BlockTable() { Clear(); }
  BlockTable(const BlockTable&) = delete;
  BlockTable& operator=(const BlockTable&) = delete;

  // Blocks for positions [0, tokens); the pool must have the missing ones, tokens <= max_tokens.
  void Grow(int64_t tokens);
  // The next block is this one, of another table or found in the pool.
  void Share(int32_t block);
  // The next `blocks` blocks are behind the window already. Before all others.
  void Skip(int64_t blocks);
  // Gives back what the token at `position` and later ones do not see.
  void DropBehind(int64_t position);
  // Makes a block findable; it may turn into another one of the same content.
  void Publish(int64_t index, const BlockDigest& digest);
  // Gives every block back, the last one first: so the end of a prefix is forgotten before its
  // beginning.
  void Clear();

  int64_t blocks() const { return size_; }  // with those behind the window
  int64_t first() const { return first_; }  // that is held
  // How many blocks Clear would make free, as things are.
  int64_t own_blocks() const;
  const int32_t* data() const { return ids_.get(); }

 private:
  BlockPool& pool_;
  const int64_t capacity_, window_;
  int64_t first_ = 0, size_ = 0;
  std::unique_ptr<int32_t[]> ids_;  // [capacity_]
};

}  // namespace switchyard::router
