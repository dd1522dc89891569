#include "router/kv/block_table.h"

#include <algorithm>

#include "services/base/check.h"

namespace switchyard::router {

BlockTable::BlockTable(BlockPool& pool, int64_t max_tokens)
    : pool_(pool), capacity_(BlocksFor(max_tokens)), ids_(std::make_unique<int32_t[]>(capacity_)) {}

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

void BlockTable::Publish(int64_t index, const BlockDigest& digest) {
  SY_CHECK(index < size_);
  ids_[index] = pool_.Publish(ids_[index], digest);
}

void BlockTable::Clear() {
  while (size_ > 0) pool_.Release(ids_[--size_]);
}

int64_t BlockTable::own_blocks() const {
  const int32_t* end = data() + size_;
  return end -
         std::partition_point(data(), end, [this](int32_t id) { return pool_.references(id) > 1; });
}

}  // namespace switchyard::router
