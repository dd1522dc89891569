#include "router/kv/block_pool.h"

#include <limits>

#include "services/base/check.h"

namespace switchyard::router {

BlockPool::BlockPool(int64_t blocks) {
  SY_CHECK(blocks > 0 && blocks <= std::numeric_limits<int32_t>::max());
  owned_.assign(blocks, 0);
  free_.reserve(blocks);
  for (int64_t i = blocks; i-- > 0;) free_.push_back(static_cast<int32_t>(i));
}

int32_t BlockPool::Allocate() {
  SY_CHECK(!free_.empty());
  const int32_t block = free_.back();
  free_.pop_back();
  owned_[block] = 1;
  return block;
}

void BlockPool::Free(int32_t block) {
  SY_CHECK(block >= 0 && block < blocks() && owned_[block] != 0);
  owned_[block] = 0;
  free_.push_back(block);
}

}  // namespace switchyard::router
