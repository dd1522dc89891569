// Guesses what a sequence is going to say, so that several of its rows can be computed in one step.
// A guess that is wrong costs its row and changes no token: the engine draws each token from its
// logits as ever, and goes on with the row behind a draft only if the draft was what it drew.
//
// One drafter a sequence, which may remember. Driven by the engine thread.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace switchyard::router {

// What there is to guess from. A draft head would want the last row's hidden state here.
struct DraftTask {
  std::span<const int32_t> tokens;  // all known ones; those of earlier calls and more
  int most = 0;                     // drafts, >= 1
};

class Drafter {
 public:
  virtual ~Drafter() = default;

  // Puts what may follow the tokens into `drafts`, `task.most` of them or fewer, also none.
  virtual void Draft(const DraftTask& task, std::vector<int32_t>* drafts) = 0;
};

}  // namespace switchyard::router
