// Which blocks of the KV cache are free. Ids only: the memory is kv_storage.h's. Every block has
// one owner, a sequence's BlockTable; sharing prefixes will turn the owned mark into a count.
//
// Not thread-safe: the engine thread owns it.
#pragma once

#include <cstdint>
#include <vector>

namespace switchyard::router {

class BlockPool {
 public:
  explicit BlockPool(int64_t blocks);

  int64_t blocks() const { return static_cast<int64_t>(owned_.size()); }
  int64_t free() const { return static_cast<int64_t>(free_.size()); }
  int64_t used() const { return blocks() - free(); }

  // The block freed last, whose pages are warm. There must be a free one.
  int32_t Allocate();
  void Free(int32_t block);

 private:
  std::vector<int32_t> free_;   // a stack
  std::vector<uint8_t> owned_;  // [blocks]
};

}  // namespace switchyard::router
