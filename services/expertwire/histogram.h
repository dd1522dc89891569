// Counts of values by power of two, for metrics: one writer or many, read by any thread.
#pragma once

#include <array>
#include <atomic>
#include <bit>
#include <cstdint>

namespace switchyard::expertwire {

struct HistogramCounts {
  static constexpr int kBuckets = 28;
  std::array<uint64_t, kBuckets> counts{};  // bucket b: values < 2^b (and not in a lower one)
  uint64_t count = 0;
  uint64_t sum = 0;
};

class Histogram {
 public:
  void Add(uint64_t value) {
    const int bucket = std::bit_width(value);
    counts_[bucket < HistogramCounts::kBuckets ? bucket : HistogramCounts::kBuckets - 1].fetch_add(
        1, std::memory_order_relaxed);
    sum_.fetch_add(value, std::memory_order_relaxed);
  }
  // What is added meanwhile may stay or not.
  void Reset() {
    for (auto& count : counts_) count.store(0, std::memory_order_relaxed);
    sum_.store(0, std::memory_order_relaxed);
  }
  HistogramCounts Read() const {
    HistogramCounts out;
    for (int b = 0; b < HistogramCounts::kBuckets; ++b) {
      out.counts[b] = counts_[b].load(std::memory_order_relaxed);
      out.count += out.counts[b];
    }
    out.sum = sum_.load(std::memory_order_relaxed);
    return out;
  }

 private:
  std::array<std::atomic<uint64_t>, HistogramCounts::kBuckets> counts_{};
  std::atomic<uint64_t> sum_ = 0;
};

}  // namespace switchyard::expertwire
