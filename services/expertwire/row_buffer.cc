#include "services/expertwire/row_buffer.h"

#include <algorithm>
#include <array>
#include <bit>
#include <new>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_set.h"
#include "absl/synchronization/mutex.h"

namespace switchyard::expertwire {
namespace {

constexpr std::align_val_t kAlignment{64};
constexpr size_t kSmallest = 64;
constexpr size_t kSmallOrders = 16;  // up to 64 KiB
// Of a source, whose blocks may be dear (pinned memory comes in pages), only those from 4 KiB on.
constexpr size_t kSmallestSourced = 12;

size_t OrderOf(size_t bytes) {
  return static_cast<size_t>(std::bit_width(std::max(bytes, kSmallest) - 1));
}

}  // namespace

// Idle blocks by the power of two that they are large. Small ones have as much room as large ones:
// a prompt's rows push no headers out.
struct BlockPool::Shelves {
  Shelves(size_t keep, std::shared_ptr<BlockSource> from)
      : keep_bytes(keep), source(std::move(from)) {}
  size_t& IdleBytes(size_t order) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
    return idle_bytes[order > kSmallOrders];
  }
  std::byte* Allocate(size_t order);
  void Free(std::byte* block);

  const size_t keep_bytes;
  const std::shared_ptr<BlockSource> source;
  mutable absl::Mutex mutex;
  std::array<std::vector<std::byte*>, 64> free ABSL_GUARDED_BY(mutex);
  size_t idle_bytes[2] ABSL_GUARDED_BY(mutex) = {};
  absl::flat_hash_set<const std::byte*> sourced ABSL_GUARDED_BY(mutex);  // blocks, of the source
};

std::byte* BlockPool::Shelves::Allocate(size_t order) {
  if (source != nullptr && order >= kSmallestSourced) {
    if (std::byte* block = source->Allocate(size_t{1} << order); block != nullptr) {
      absl::MutexLock lock(&mutex);
      sourced.insert(block);
      return block;
    }
  }
  return static_cast<std::byte*>(::operator new (size_t{1} << order, kAlignment));
}

void BlockPool::Shelves::Free(std::byte* block) {
  if (source != nullptr) {
    absl::MutexLock lock(&mutex);
    if (sourced.erase(block) > 0) return source->Free(block);
  }
  ::operator delete(block, kAlignment);
}

BlockPool::BlockPool(size_t keep_bytes, std::shared_ptr<BlockSource> source)
    : shelves_(std::make_unique<Shelves>(keep_bytes, std::move(source))) {}

BlockPool::~BlockPool() {
  std::array<std::vector<std::byte*>, 64> all;
  {
    absl::MutexLock lock(&shelves_->mutex);
    all.swap(shelves_->free);
  }
  for (const auto& list : all) {
    for (std::byte* block : list) shelves_->Free(block);
  }
}

std::byte* BlockPool::Take(size_t bytes) {
  const size_t order = OrderOf(bytes);
  {
    absl::MutexLock lock(&shelves_->mutex);
    if (auto& list = shelves_->free[order]; !list.empty()) {
      std::byte* block = list.back();
      list.pop_back();
      shelves_->IdleBytes(order) -= size_t{1} << order;
      return block;
    }
  }
  return shelves_->Allocate(order);
}

MemoryKind BlockPool::KindOf(const std::byte* block) const {
  if (shelves_->source == nullptr) return MemoryKind::kHost;
  absl::MutexLock lock(&shelves_->mutex);
  return shelves_->sourced.contains(block) ? shelves_->source->kind() : MemoryKind::kHost;
}

void BlockPool::Give(std::byte* block, size_t bytes) {
  const size_t order = OrderOf(bytes);
  {
    absl::MutexLock lock(&shelves_->mutex);
    size_t& idle_bytes = shelves_->IdleBytes(order);
    if (idle_bytes + (size_t{1} << order) <= shelves_->keep_bytes) {
      idle_bytes += size_t{1} << order;
      shelves_->free[order].push_back(block);
      return;
    }
  }
  shelves_->Free(block);
}

RowBuffer RowBufferPool::Take(size_t bytes) {
  std::byte* const block = blocks_->Take(bytes);
  const MemoryKind kind = blocks_->KindOf(block);
  return RowBuffer(
      std::shared_ptr<std::byte>(
          block, [blocks = blocks_, bytes](std::byte* taken) { blocks->Give(taken, bytes); },
          PoolAllocator<std::byte>(blocks_)),
      bytes, kind);
}

}  // namespace switchyard::expertwire
