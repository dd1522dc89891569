#include "router/kv/block_table.h"

#include "services/base/check.h"

namespace switchyard::router {

BlockTable::BlockTable(BlockPool& pool, int64_t max_tokens)
    : pool_(pool), capacity_(BlocksFor(max_tokens)), ids_(std::make_unique<int32_t[]>(capacity_)) {}

void BlockTable::Grow(int64_t tokens) {
  const int64_t need = BlocksFor(tokens);
  SY_CHECK(need <= capacity_);
  while (size_ < need) ids_[size_++] = pool_.Allocate();
}

void BlockTable::Clear() {
  while (size_ > 0) pool_.Free(ids_[--size_]);
}

}  // namespace switchyard::router
