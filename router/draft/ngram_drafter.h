// Drafts by looking back: where the longest end of the tokens stood before, what followed then may
// follow now. It pays for texts that repeat themselves or their prompt: summaries, code, edits.
//
// Keeps one number a token and one a distinct pair.
#pragma once

#include "absl/container/flat_hash_map.h"
#include "router/draft/drafter.h"

namespace switchyard::router {

class NgramDrafter : public Drafter {
 public:
  void Draft(const DraftTask& task, std::vector<int32_t>* drafts) override;

 private:
  void Index(std::span<const int32_t> tokens);

  // Where a pair of tokens was last seen to end, and for each position where the pair that ends
  // there ended before; -1: nowhere.
  absl::flat_hash_map<uint64_t, int32_t> last_;
  std::vector<int32_t> before_;
};

}  // namespace switchyard::router
