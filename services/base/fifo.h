// A queue that keeps its memory: a std::deque of large elements takes and frees a block with nearly
// every one of them.
#pragma once

#include <cstddef>
#include <utility>
#include <vector>

namespace switchyard {

template <typename T>
class Fifo {
 public:
  bool empty() const { return first_ == items_.size(); }
  size_t size() const { return items_.size() - first_; }
  T& front() { return items_[first_]; }
  const T& front() const { return items_[first_]; }

  void push_back(T item) { items_.push_back(std::move(item)); }

  T pop_front() {
    T item = std::move(items_[first_++]);
    // What was taken is dropped once it is half of all: each element moves once on average.
    if (2 * first_ >= items_.size()) DropTaken();
    return item;
  }

  void clear() {
    items_.clear();
    first_ = 0;
  }

  // Keeps the order of the others; returns how many satisfied `of`, which sees each once.
  template <typename Predicate>
  size_t erase_if(Predicate of) {
    DropTaken();
    return std::erase_if(items_, of);
  }

 private:
  void DropTaken() {
    items_.erase(items_.begin(), items_.begin() + static_cast<std::ptrdiff_t>(first_));
    first_ = 0;
  }

  std::vector<T> items_;
  size_t first_ = 0;  // before it: taken
};

}  // namespace switchyard
