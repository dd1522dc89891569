// Which tokens a sequence holds, as the penalties want to know it: each distinct id of prompt and
// output with its number of occurrences in the output. Empty where no penalty is on.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "router/sample/sampling_params.h"

namespace switchyard::router {

class TokenHistory {
 public:
  struct Entry {
    int32_t id = 0;
    int32_t in_output = 0;
  };

  TokenHistory(const SamplingParams& params, std::span<const int32_t> prompt)
      : kept_(params.repetition_penalty != 1 || params.presence_penalty != 0 ||
              params.frequency_penalty != 0) {
    for (int32_t id : prompt) Add(id, 0);
  }

  void AddOutput(int32_t id) { Add(id, 1); }
  std::span<const Entry> entries() const { return entries_; }

 private:
  void Add(int32_t id, int32_t count) {
    if (!kept_) return;
    const auto [at, fresh] = index_.try_emplace(id, entries_.size());
    if (fresh) entries_.push_back({.id = id});
    entries_[at->second].in_output += count;
  }

  bool kept_;
  absl::flat_hash_map<int32_t, size_t> index_;
  std::vector<Entry> entries_;
};

}  // namespace switchyard::router
