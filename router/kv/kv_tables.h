// The blocks of one sequence in all groups of layers (services/model/kv_layout.h): a table for
// each, over one pool. Tables of groups that see everything have their blocks from admission on;
// those with a window get them as the sequence is computed, and give back what is behind.
//
// Not thread-safe: the engine thread owns it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <span>

#include "router/kv/block_table.h"

namespace switchyard::router {

// Rows of a prompt for which a sequence that is admitted gets blocks in groups with a window: with
// fewer in a step weights would be read for little.
inline constexpr int64_t kLeastChunk = 2 * kBlockTokens;

// The tokens that a table has blocks for, but for those behind its window, when its sequence of
// `known` tokens is admitted with `computed` of them.
constexpr int64_t AdmittedTokens(int64_t window, int64_t computed, int64_t known) {
  return window > 0 ? std::min(known, computed + kLeastChunk) : known;
}

// Blocks that a table of a sequence of `known` tokens will hold beside those that it has, [first,
// end), while its prompt is computed in chunks.
int64_t LaterBlocks(int64_t window, int64_t first, int64_t end, int64_t known);

// So many blocks of the pool suffice to compute `tokens` tokens of a sequence, by and by.
int64_t LeastBlocks(std::span<const int> windows, int64_t tokens);

class KvTables {
 public:
  // For up to `max_tokens` positions. windows: of each group (at least one), 0: sees all. Both
  // `pool` and `windows` outlive the tables.
  KvTables(BlockPool& pool, std::span<const int> windows, int64_t max_tokens);

  int groups() const { return static_cast<int>(tables_.size()); }
  const BlockTable& group(int group) const { return tables_[static_cast<size_t>(group)]; }

  // Into empty tables the blocks of a prefix, as far as the token behind it sees them; all of those
  // can be found in the pool under their digests.
  void ShareFound(std::span<const BlockDigest> prefix);
  // The same of another's first blocks, with which it is not behind any window.
  void ShareWith(const KvTables& other, int64_t blocks);
  // For a sequence that is admitted: AdmittedTokens in each group.
  void Admit(int64_t computed, int64_t known);
  // As BlockTable's, in all groups.
  void Grow(int64_t tokens);
  void DropBehind(int64_t position);
  void Publish(int64_t index, const BlockDigest& digest);
  void Clear();
  int64_t own_blocks() const;

 private:
  BlockPool& pool_;
  const std::span<const int> windows_;
  std::deque<BlockTable> tables_;  // [groups]; they cannot move
};

}  // namespace switchyard::router
