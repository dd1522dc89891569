#include "router/kv/kv_storage.h"

#include <sys/mman.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "services/base/check.h"
#include "services/base/status.h"
#include "services/model/memory_plan.h"

namespace switchyard::router {
namespace {

// Blocks start on a cache line, so that a token's record of usual width never straddles one more.
constexpr int64_t kBlockAlignment = 64;

}  // namespace

int64_t KvStorage::BlockStrideBytes(const ModelSpec& spec, DType dtype) {
  const int64_t bytes = KvRecordBytes(spec, dtype) * kBlockTokens;
  return (bytes + kBlockAlignment - 1) / kBlockAlignment * kBlockAlignment;
}

int64_t KvStorage::BlockBytes(const ModelSpec& spec, DType dtype) {
  return BlockStrideBytes(spec, dtype) * KvLayoutOf(spec).layers_per_block;
}

absl::StatusOr<KvStorage> KvStorage::Create(const ModelSpec& spec, DType dtype, int64_t blocks) {
  if (blocks <= 0) return InvalidArgument("KV cache of {} blocks; at least 1 is needed", blocks);
  int64_t bytes = 0;
  if (__builtin_mul_overflow(BlockBytes(spec, dtype), blocks, &bytes)) {
    return ResourceExhausted("KV cache of {} blocks of {} bytes does not fit an address space",
                             blocks, BlockBytes(spec, dtype));
  }
  // Reserved, not committed: a page takes memory when a block in it is first written.
  void* base = mmap(nullptr, static_cast<size_t>(bytes), PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base == MAP_FAILED) {
    return ResourceExhausted("KV cache of {} blocks: cannot reserve {} bytes: {}", blocks, bytes,
                             std::strerror(errno));
  }
  KvStorage storage;
  storage.base_ = static_cast<std::byte*>(base);
  storage.bytes_ = static_cast<size_t>(bytes);
  storage.block_stride_bytes_ = BlockStrideBytes(spec, dtype);
  storage.record_bytes_ = KvRecordBytes(spec, dtype);
  storage.slot_bytes_ = storage.block_stride_bytes_ * blocks;
  storage.blocks_ = blocks;
  storage.dtype_ = dtype;
  storage.layout_ = KvLayoutOf(spec);
  return storage;
}

void KvStorage::CopyBlock(int32_t from, int32_t to) {
  SY_CHECK(from >= 0 && from < blocks_ && to >= 0 && to < blocks_ && from != to);
  for (size_t at = 0; at < bytes_; at += static_cast<size_t>(slot_bytes_)) {
    std::memcpy(base_ + at + to * block_stride_bytes_, base_ + at + from * block_stride_bytes_,
                static_cast<size_t>(block_stride_bytes_));
  }
}

KvStorage::~KvStorage() {
  if (base_ != nullptr) munmap(base_, bytes_);
}

KvStorage::KvStorage(KvStorage&& other) noexcept { *this = std::move(other); }

KvStorage& KvStorage::operator=(KvStorage&& other) noexcept {
  if (this == &other) return *this;
  if (base_ != nullptr) munmap(base_, bytes_);
  base_ = std::exchange(other.base_, nullptr);
  bytes_ = std::exchange(other.bytes_, 0);
  slot_bytes_ = std::exchange(other.slot_bytes_, 0);
  block_stride_bytes_ = std::exchange(other.block_stride_bytes_, 0);
  record_bytes_ = std::exchange(other.record_bytes_, 0);
  blocks_ = std::exchange(other.blocks_, 0);
  dtype_ = other.dtype_;
  layout_ = std::exchange(other.layout_, {});
  return *this;
}

}  // namespace switchyard::router
