#include "router/draft/ngram_drafter.h"

#include <utility>

#include "services/base/check.h"

namespace switchyard::router {
namespace {

// Places that are looked at, the latest first, and tokens that are compared at each: bounds the
// time of a call. A longer match than this is as good as any.
constexpr int kPlacesMax = 32;
constexpr int64_t kMatchMax = 32;

uint64_t PairAt(std::span<const int32_t> tokens, size_t i) {
  return (uint64_t{static_cast<uint32_t>(tokens[i - 1])} << 32) | static_cast<uint32_t>(tokens[i]);
}

// How many tokens up to `a` and up to `b` > a are the same.
int64_t MatchLength(std::span<const int32_t> tokens, int64_t a, int64_t b) {
  int64_t length = 0;
  while (length <= a && length < kMatchMax &&
         tokens[static_cast<size_t>(a - length)] == tokens[static_cast<size_t>(b - length)]) {
    ++length;
  }
  return length;
}

}  // namespace

void NgramDrafter::Index(std::span<const int32_t> tokens) {
  SY_CHECK(tokens.size() >= before_.size());
  for (size_t i = before_.size(); i < tokens.size(); ++i) {
    int32_t before = -1;
    if (i > 0) {
      const auto [at, fresh] = last_.try_emplace(PairAt(tokens, i), static_cast<int32_t>(i));
      if (!fresh) before = std::exchange(at->second, static_cast<int32_t>(i));
    }
    before_.push_back(before);
  }
}

void NgramDrafter::Draft(const DraftTask& task, std::vector<int32_t>* drafts) {
  drafts->clear();
  Index(task.tokens);
  if (task.tokens.empty()) return;
  const auto end = static_cast<int64_t>(task.tokens.size()) - 1;
  int64_t best = -1, best_length = 0;
  int64_t at = before_.back();
  for (int places = 0; at >= 0 && places < kPlacesMax; ++places) {
    const int64_t length = MatchLength(task.tokens, at, end);
    if (length > best_length) best = at, best_length = length;
    at = before_[static_cast<size_t>(at)];
  }
  if (best < 0) return;
  // What repeats with a period shorter than the drafts wanted goes on so.
  for (int64_t i = 0; i < task.most; ++i) {
    drafts->push_back(task.tokens[static_cast<size_t>(best + 1 + i % (end - best))]);
  }
}

}  // namespace switchyard::router
