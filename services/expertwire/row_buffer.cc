#include "services/expertwire/row_buffer.h"

#include <algorithm>
#include <array>
#include <bit>
#include <new>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace switchyard::expertwire {
namespace {

constexpr std::align_val_t kAlignment{64};
constexpr size_t kSmallest = 4096;

}  // namespace

struct RowBufferPool::Shared {
  explicit Shared(size_t keep) : keep_bytes(keep) {}
  ~Shared() {
    for (auto& list : free) {
      for (std::byte* block : list) ::operator delete(block, kAlignment);
    }
  }

  std::byte* Take(int order) {
    {
      absl::MutexLock lock(&mutex);
      if (auto& list = free[order]; !list.empty()) {
        std::byte* block = list.back();
        list.pop_back();
        idle_bytes -= size_t{1} << order;
        return block;
      }
    }
    return static_cast<std::byte*>(::operator new (size_t{1} << order, kAlignment));
  }

  void Return(std::byte* block, int order) {
    {
      absl::MutexLock lock(&mutex);
      if (idle_bytes + (size_t{1} << order) <= keep_bytes) {
        idle_bytes += size_t{1} << order;
        free[order].push_back(block);
        return;
      }
    }
    ::operator delete(block, kAlignment);
  }

  const size_t keep_bytes;
  absl::Mutex mutex;
  std::array<std::vector<std::byte*>, 64> free ABSL_GUARDED_BY(mutex);
  size_t idle_bytes ABSL_GUARDED_BY(mutex) = 0;
};

RowBufferPool::RowBufferPool(size_t keep_bytes) : shared_(std::make_shared<Shared>(keep_bytes)) {}

RowBuffer RowBufferPool::Take(size_t bytes) {
  const int order = std::bit_width(std::max(bytes, kSmallest) - 1);
  std::byte* block = shared_->Take(order);
  return RowBuffer(
      std::shared_ptr<std::byte>(
          block, [shared = shared_, order](std::byte* p) { shared->Return(p, order); }),
      bytes);
}

}  // namespace switchyard::expertwire
