// Rows on their way between a router and a worker. A RowBuffer is a reference: it may share what a
// pool lends, or borrow memory whose owner promises to keep it (the rows of a MoE job stay until
// the job is done). Copying it copies no rows. The bytes are 64-byte aligned where a pool made
// them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

namespace switchyard::expertwire {

enum class MemoryKind : uint8_t { kHost, kPinned, kDevice };

class RowBuffer {
 public:
  RowBuffer() = default;
  // Shares `owner`, which keeps [data, data + bytes) alive.
  RowBuffer(std::shared_ptr<std::byte> owner, size_t bytes, MemoryKind kind = MemoryKind::kHost)
      : owner_(std::move(owner)), data_(owner_.get()), bytes_(bytes), kind_(kind) {}
  // The caller keeps the memory until every copy of this buffer is gone.
  static RowBuffer Borrow(const void* data, size_t bytes) {
    RowBuffer buffer;
    buffer.data_ = static_cast<std::byte*>(const_cast<void*>(data));
    buffer.bytes_ = bytes;
    return buffer;
  }

  // Part of this buffer, sharing its memory. Must lie inside.
  RowBuffer Slice(size_t offset, size_t bytes) const {
    RowBuffer part = *this;
    part.data_ += offset;
    part.bytes_ = bytes;
    return part;
  }

  const std::byte* data() const { return data_; }
  // Only for whoever took the buffer from a pool, before it is handed on.
  std::byte* mutable_data() { return data_; }
  size_t bytes() const { return bytes_; }
  MemoryKind kind() const { return kind_; }

  template <typename T>
  const T* as() const {
    return reinterpret_cast<const T*>(data_);
  }

 private:
  std::shared_ptr<std::byte> owner_;
  std::byte* data_ = nullptr;
  size_t bytes_ = 0;
  MemoryKind kind_ = MemoryKind::kHost;
};

// Memory of a kind that large blocks of a pool come from. Thread-safe.
class BlockSource {
 public:
  virtual ~BlockSource() = default;
  virtual MemoryKind kind() const = 0;
  // 64-byte aligned; null where there is none to be had: the block is of the heap then.
  virtual std::byte* Allocate(size_t bytes) = 0;
  virtual void Free(std::byte* block) = 0;
};

// Where the blocks of a RowBufferPool lie. Thread-safe.
class BlockPool {
 public:
  // `source` may be null: all blocks are of the heap.
  explicit BlockPool(size_t keep_bytes, std::shared_ptr<BlockSource> source = nullptr);
  ~BlockPool();
  BlockPool(const BlockPool&) = delete;
  BlockPool& operator=(const BlockPool&) = delete;

  // At least `bytes`, 64-byte aligned, uninitialised. Give takes it back, with the same size.
  std::byte* Take(size_t bytes);
  MemoryKind KindOf(const std::byte* block) const;
  void Give(std::byte* block, size_t bytes);

 private:
  struct Shelves;
  const std::unique_ptr<Shelves> shelves_;
};

// The allocator of lists that travel with a frame: their memory comes from a pool and goes back to
// it, whoever drops them. Without a pool it is the heap's. Moves with the list.
template <typename T>
class PoolAllocator {
 public:
  using value_type = T;
  using propagate_on_container_move_assignment = std::true_type;
  using propagate_on_container_swap = std::true_type;

  PoolAllocator() = default;
  explicit PoolAllocator(std::shared_ptr<BlockPool> pool) : pool_(std::move(pool)) {}
  template <typename U>
  PoolAllocator(const PoolAllocator<U>& other) : pool_(other.pool()) {}  // as containers convert it

  T* allocate(size_t n) {
    if (pool_ == nullptr) return std::allocator<T>().allocate(n);
    return reinterpret_cast<T*>(pool_->Take(n * sizeof(T)));
  }
  void deallocate(T* list, size_t n) {
    if (pool_ == nullptr) return std::allocator<T>().deallocate(list, n);
    pool_->Give(reinterpret_cast<std::byte*>(list), n * sizeof(T));
  }
  // A copy of a list is somebody's own.
  PoolAllocator select_on_container_copy_construction() const { return {}; }

  const std::shared_ptr<BlockPool>& pool() const { return pool_; }
  friend bool operator==(const PoolAllocator& a, const PoolAllocator& b) {
    return a.pool_ == b.pool_;
  }

 private:
  std::shared_ptr<BlockPool> pool_;
};

template <typename T>
using PooledVector = std::vector<T, PoolAllocator<T>>;

// Lends blocks and takes them back, so that a steady stream of frames allocates nothing. Blocks
// come in powers of two; at most `keep_bytes` of large ones and of small ones lie idle.
// Thread-safe; blocks may outlive it.
class RowBufferPool {
 public:
  explicit RowBufferPool(size_t keep_bytes = 64u << 20,
                         std::shared_ptr<BlockSource> source = nullptr)
      : blocks_(std::make_shared<BlockPool>(keep_bytes, std::move(source))) {}
  // Uninitialised.
  RowBuffer Take(size_t bytes);
  // An empty list whose memory comes from here.
  template <typename T>
  PooledVector<T> List() const {
    return PooledVector<T>(PoolAllocator<T>(blocks_));
  }

 private:
  const std::shared_ptr<BlockPool> blocks_;
};

}  // namespace switchyard::expertwire
