#include "router/kv/kv_tables.h"

namespace switchyard::router {

namespace {

// Where the rows of a chunk and what they see lie: they, and the window before the first of them,
// which may begin inside of a block.
int64_t WindowBlocks(int64_t window) { return BlocksFor(window - 1 + kLeastChunk - 1) + 1; }

}  // namespace

int64_t LaterBlocks(int64_t window, int64_t first, int64_t end, int64_t known) {
  if (window == 0) return 0;  // has all from admission on
  return std::max<int64_t>(0,
                           std::min(BlocksFor(known) - end, WindowBlocks(window) - (end - first)));
}

int64_t LeastBlocks(std::span<const int> windows, int64_t tokens) {
  int64_t blocks = 0;
  for (const int64_t window : windows) {
    const int64_t all = BlocksFor(tokens);
    blocks += window > 0 ? std::min(all, WindowBlocks(window)) : all;
  }
  return blocks;
}

KvTables::KvTables(BlockPool& pool, std::span<const int> windows, int64_t max_tokens)
    : pool_(pool), windows_(windows) {
  for (const int window : windows) tables_.emplace_back(pool, max_tokens, window);
}

void KvTables::ShareFound(std::span<const BlockDigest> prefix) {
  const auto blocks = static_cast<int64_t>(prefix.size());
  for (int g = 0; g < groups(); ++g) {
    BlockTable& table = tables_[static_cast<size_t>(g)];
    const int64_t first = FirstBlockSeen(blocks * kBlockTokens, windows_[static_cast<size_t>(g)]);
    table.Skip(first);
    for (int64_t i = first; i < blocks; ++i) {
      table.Share(pool_.Find(InGroup(prefix[static_cast<size_t>(i)], g)));
    }
  }
}

void KvTables::ShareWith(const KvTables& other, int64_t blocks) {
  for (int g = 0; g < groups(); ++g) {
    BlockTable& table = tables_[static_cast<size_t>(g)];
    const BlockTable& from = other.group(g);
    const int64_t first = std::min(from.first(), blocks);
    table.Skip(first);
    for (int64_t i = first; i < blocks; ++i) table.Share(from.data()[i]);
  }
}

void KvTables::Admit(int64_t computed, int64_t known) {
  for (size_t g = 0; g < tables_.size(); ++g) {
    tables_[g].Grow(AdmittedTokens(windows_[g], computed, known));
  }
}

void KvTables::Grow(int64_t tokens) {
  for (BlockTable& table : tables_) table.Grow(tokens);
}

void KvTables::DropBehind(int64_t position) {
  for (BlockTable& table : tables_) table.DropBehind(position);
}

void KvTables::Publish(int64_t index, const BlockDigest& digest) {
  for (int g = 0; g < groups(); ++g) {
    tables_[static_cast<size_t>(g)].Publish(index, InGroup(digest, g));
  }
}

void KvTables::Clear() {
  for (BlockTable& table : tables_) table.Clear();
}

int64_t KvTables::own_blocks() const {
  int64_t blocks = 0;
  for (const BlockTable& table : tables_) blocks += table.own_blocks();
  return blocks;
}

}  // namespace switchyard::router
