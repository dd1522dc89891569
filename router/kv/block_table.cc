#include "router/kv/block_table.h"

#include <algorithm>
#include <functional>
#include <utility>

#include "services/base/check.h"

namespace switchyard::router {

BlockTable::BlockTable(BlockPool& pool, int64_t max_tokens, int64_t window)
    : pool_(pool),
      capacity_(BlocksFor(max_tokens)),
      window_(window),
      ids_(std::make_unique<int32_t[]>(capacity_)) {}

void BlockTable::Grow(int64_t tokens) {
  const int64_t need = BlocksFor(tokens);
  SY_CHECK(need <= capacity_);
  while (size_ < need) ids_[size_++] = pool_.Allocate();
}

void BlockTable::Share(int32_t block) {
  SY_CHECK(size_ < capacity_);
  pool_.Retain(block);
  ids_[size_++] = block;
}

void BlockTable::Skip(int64_t blocks) {
  SY_CHECK(size_ == 0 && blocks <= capacity_);
  std::fill_n(ids_.get(), blocks, -1);
  first_ = size_ = blocks;
}

void BlockTable::DropBehind(int64_t position) {
  const int64_t first = std::min(FirstBlockSeen(position, window_), size_);
  for (; first_ < first; ++first_) pool_.Release(std::exchange(ids_[first_], -1));
}

void BlockTable::Publish(int64_t index, const BlockDigest& digest) {
  SY_CHECK(index >= first_ && index < size_);
  ids_[index] = pool_.Publish(ids_[index], digest);
}

void BlockTable::Clear() {
  while (size_ > first_) pool_.Release(ids_[--size_]);
  first_ = size_ = 0;
}

int64_t BlockTable::own_blocks() const {
  const int32_t *begin = data() + first_, *end = data() + size_;
  const auto shared = [this](int32_t id) { return pool_.references(id) > 1; };
  // Of what the window leaves others may hold any part.
  if (window_ > 0) return std::count_if(begin, end, std::not_fn(shared));
  return end - std::partition_point(begin, end, shared);
}

}  // namespace switchyard::router
