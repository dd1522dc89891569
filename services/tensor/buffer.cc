#include "services/tensor/buffer.h"

#include <cstdlib>
#include <new>

namespace switchyard {

void AlignedBuffer::Free::operator()(std::byte* p) const { std::free(p); }

void AlignedBuffer::Reserve(size_t bytes) {
  if (bytes <= capacity_) return;
  // Half as much again, so that a slowly growing batch does not allocate each time.
  size_t wanted = bytes + (capacity_ != 0 ? bytes / 2 : 0);
  wanted = (wanted + kAlignment - 1) / kAlignment * kAlignment;
  data_.reset();
  capacity_ = 0;
  void* p = std::aligned_alloc(kAlignment, wanted);
  if (p == nullptr) throw std::bad_alloc();
  data_.reset(static_cast<std::byte*>(p));
  capacity_ = wanted;
}

}  // namespace switchyard
