// A growable, 64-byte aligned, uninitialised block of bytes. Grows without keeping its contents, so
// that the step loop allocates only until it has seen its largest batch. Movable, not copyable; not
// thread-safe.
#pragma once

#include <cstddef>
#include <memory>

namespace switchyard {

class AlignedBuffer {
 public:
  static constexpr size_t kAlignment = 64;

  AlignedBuffer() = default;
  explicit AlignedBuffer(size_t bytes) { Reserve(bytes); }

  // At least `bytes` are usable afterwards; contents are lost if it had to grow.
  void Reserve(size_t bytes);

  std::byte* data() { return data_.get(); }
  const std::byte* data() const { return data_.get(); }
  size_t capacity() const { return capacity_; }

  template <typename T>
  T* as() {
    return reinterpret_cast<T*>(data_.get());
  }
  template <typename T>
  const T* as() const {
    return reinterpret_cast<const T*>(data_.get());
  }

 private:
  struct Free {
    void operator()(std::byte* p) const;
  };
  std::unique_ptr<std::byte, Free> data_;
  size_t capacity_ = 0;
};

}  // namespace switchyard
