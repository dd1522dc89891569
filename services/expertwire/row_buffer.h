// Rows on their way between a router and a worker. A RowBuffer is a reference: it may share what a
// pool lends, or borrow memory whose owner promises to keep it (the rows of a MoE job stay until
// the job is done). Copying it copies no rows. The bytes are 64-byte aligned where a pool made
// them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace switchyard::expertwire {

enum class MemoryKind : uint8_t { kHost, kPinned, kDevice };

class RowBuffer {
 public:
  RowBuffer() = default;
  // Shares `owner`, which keeps [data, data + bytes) alive.
  RowBuffer(std::shared_ptr<std::byte> owner, size_t bytes)
      : owner_(std::move(owner)), data_(owner_.get()), bytes_(bytes) {}
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
  MemoryKind kind() const { return MemoryKind::kHost; }

  template <typename T>
  const T* as() const {
    return reinterpret_cast<const T*>(data_);
  }

 private:
  std::shared_ptr<std::byte> owner_;
  std::byte* data_ = nullptr;
  size_t bytes_ = 0;
};

// Lends blocks and takes them back, so that a steady stream of frames allocates nothing large.
// Blocks come in powers of two; at most `keep_bytes` lie idle. Thread-safe; blocks may outlive it.
class RowBufferPool {
 public:
  explicit RowBufferPool(size_t keep_bytes = 64u << 20);
  // Uninitialised.
  RowBuffer Take(size_t bytes);

 private:
  struct Shared;
  std::shared_ptr<Shared> shared_;
};

}  // namespace switchyard::expertwire
