#include "services/expertwire/row_buffer.h"

#include <algorithm>
#include <array>
#include <bit>
#include <new>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace switchyard::expertwire {
namespace {

constexpr std::align_val_t kAlignment{64};
constexpr size_t kSmallest = 64;
constexpr size_t kSmallOrders = 16;  // up to 64 KiB

size_t OrderOf(size_t bytes) {
  return static_cast<size_t>(std::bit_width(std::max(bytes, kSmallest) - 1));
}

}  // namespace

// Idle blocks by the power of two that they are large. Small ones have as much room as large ones:
// a prompt's rows push no headers out.
struct BlockPool::Shelves {
  explicit Shelves(size_t keep) : keep_bytes(keep) {}
  size_t& IdleBytes(size_t order) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
    return idle_bytes[order > kSmallOrders];
  }

  const size_t keep_bytes;
  absl::Mutex mutex;
  std::array<std::vector<std::byte*>, 64> free ABSL_GUARDED_BY(mutex);
  size_t idle_bytes[2] ABSL_GUARDED_BY(mutex) = {};
};

BlockPool::BlockPool(size_t keep_bytes) : shelves_(std::make_unique<Shelves>(keep_bytes)) {}

BlockPool::~BlockPool() {
  for (auto& list : shelves_->free) {
    for (std::byte* block : list) ::operator delete(block, kAlignment);
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
  return static_cast<std::byte*>(::operator new (size_t{1} << order, kAlignment));
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
  ::operator delete(block, kAlignment);
}

RowBuffer RowBufferPool::Take(size_t bytes) {
  return RowBuffer(std::shared_ptr<std::byte>(
                       blocks_->Take(bytes),
                       [blocks = blocks_, bytes](std::byte* block) { blocks->Give(block, bytes); },
                       PoolAllocator<std::byte>(blocks_)),
                   bytes);
}

}  // namespace switchyard::expertwire
