// Which blocks of the KV cache are free, which are shared and which can be found again. Ids only:
// the memory is kv_storage.h's.
//
// A block is used while somebody holds a reference to it. One that is full of computed tokens may
// be published under the digest of its prefix (prefix_digest.h): from then on nobody writes to it,
// and any sequence with that prefix may hold it too. After its last reference it counts as free but
// stays findable until its memory is wanted; of these the least recently used goes first.
//
// Not thread-safe: the engine thread owns it.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "router/kv/prefix_digest.h"

namespace switchyard::router {

class BlockPool {
 public:
  explicit BlockPool(int64_t blocks);

  int64_t blocks() const { return static_cast<int64_t>(slots_.size()); }
  int64_t free() const { return static_cast<int64_t>(free_.size()) + findable_free_; }
  int64_t used() const { return blocks() - free(); }
  // Of the free ones, those that can be found.
  int64_t findable_free() const { return findable_free_; }

  // With one reference; there must be a free block. Of those that cannot be found the one freed
  // last, whose pages are warm; else the least recently used findable one, which is forgotten.
  int32_t Allocate();
  // One reference more, to a block that is used or was found.
  void Retain(int32_t block);
  void Release(int32_t block);
  int references(int32_t block) const { return slots_[block].references; }

  // Makes a used block findable. If another block already bears the digest, the caller's reference
  // moves to that one, whose id is returned; else `block` is.
  int32_t Publish(int32_t block, const BlockDigest& digest);
  // The block of that digest, or -1. It stays what it is until the next Allocate.
  int32_t Find(const BlockDigest& digest) const;

 private:
  struct Slot {
    int references = 0;
    bool findable = false;
    int32_t older = -1, newer = -1;  // neighbours among the findable free ones
  };

  void Unlink(int32_t block);
  void Forget(int32_t block);

  std::vector<Slot> slots_;            // [blocks]
  std::vector<int32_t> free_;          // a stack of those that cannot be found
  std::vector<BlockDigest> digests_;   // [blocks], of the findable ones
  int64_t findable_free_ = 0;          // length of the list
  int32_t oldest_ = -1, newest_ = -1;  // its ends
  absl::flat_hash_map<BlockDigest, int32_t> index_;
};

}  // namespace switchyard::router
