#include "router/kv/block_pool.h"

#include <limits>

#include "services/base/check.h"

namespace switchyard::router {

BlockPool::BlockPool(int64_t blocks) {
  SY_CHECK(blocks > 0 && blocks <= std::numeric_limits<int32_t>::max());
  slots_.resize(blocks);
  digests_.resize(blocks);
  free_.reserve(blocks);
  for (int64_t i = blocks; i-- > 0;) free_.push_back(static_cast<int32_t>(i));
}

int32_t BlockPool::Allocate() {
  int32_t block = oldest_;
  if (!free_.empty()) {
    block = free_.back();
    free_.pop_back();
  } else {
    SY_CHECK(findable_free_ > 0);
    Unlink(block);
    Forget(block);
  }
  slots_[block].references = 1;
  return block;
}

void BlockPool::Retain(int32_t block) {
  SY_CHECK(block >= 0 && block < blocks());
  Slot& slot = slots_[block];
  SY_CHECK(slot.references > 0 || slot.findable);
  if (slot.references++ == 0) Unlink(block);
}

void BlockPool::Release(int32_t block) {
  SY_CHECK(block >= 0 && block < blocks() && slots_[block].references > 0);
  Slot& slot = slots_[block];
  if (--slot.references > 0) return;
  if (!slot.findable) return free_.push_back(block);
  slot.older = newest_;
  slot.newer = -1;
  (newest_ < 0 ? oldest_ : slots_[newest_].newer) = block;
  newest_ = block;
  ++findable_free_;
}

int32_t BlockPool::Publish(int32_t block, const BlockDigest& digest) {
  Slot& slot = slots_[block];
  SY_CHECK(slot.references > 0 && !slot.findable);
  const auto [at, fresh] = index_.try_emplace(digest, block);
  if (fresh) {
    slot.findable = true;
    digests_[block] = digest;
    return block;
  }
  const int32_t other = at->second;
  Retain(other);
  Release(block);
  return other;
}

int32_t BlockPool::Find(const BlockDigest& digest) const {
  const auto at = index_.find(digest);
  return at == index_.end() ? -1 : at->second;
}

void BlockPool::Unlink(int32_t block) {
  const Slot& slot = slots_[block];
  (slot.older < 0 ? oldest_ : slots_[slot.older].newer) = slot.newer;
  (slot.newer < 0 ? newest_ : slots_[slot.newer].older) = slot.older;
  --findable_free_;
}

void BlockPool::Forget(int32_t block) {
  slots_[block].findable = false;
  index_.erase(digests_[block]);
}

}  // namespace switchyard::router
