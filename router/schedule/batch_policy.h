// What the next step computes, decided as a pure function of a snapshot: it never blocks and never
// remembers.
//
// A sequence has `known` tokens (prompt and output) of which `computed` lie in the KV cache (of one
// that waits: those of its prefix that the cache happens to hold); it decodes when one is missing
// and prefills when more are. Rank is priority, then arrival; those that wait come in the order of
// their turns, which is by priority and else their queue's matter. The rules:
//
//   decode    first, within the token budget; those that waited longest since their last row go
//             first inside a priority, so that a budget below the number of sequences starves none.
//   drafts    after all decodes, with what is left of the budget; nobody gives way for them.
//   preempt   a sequence whose next row needs blocks when too few are free takes those of the
//             lowest ranked below it that has no row in this step; if there is none it sits this
//             step out. A preempted sequence computes its known tokens again when it is admitted
//             again, but for those that the cache still holds then.
//   prefill   with the budget that is left, by rank, in chunks of any size for which there are
//             blocks (in groups with a window; others got theirs before). Beside decodes a chunk
//             ends where the step would take longer than its target. A prompt that does not fit
//             into a step leaves half of the rows to those behind it, and takes what they do not
//             need: a long one holds short ones up no longer than twice their own time.
//   admit     after the prefills that run, by turn, nobody overtakes: when the blocks that it
//             takes at once (KvTables::Admit) are free or held by sequences of the same prefix, and
//             there are those that it and the prefills that run take later, and some for the
//             others. A higher priority displaces running sequences of lower ones.
//
// The highest ranked sequence that runs is never preempted, so it ends in finitely many steps, and
// so by induction do all of a priority whose turn comes. A stream of higher priorities does starve
// lower ones: that is what priority says.
#pragma once

#include <cstdint>
#include <vector>

#include "router/schedule/step_cost.h"

namespace switchyard::router {

struct BatchLimits {
  int64_t max_batch_tokens = 0;  // rows of a step, >= 1
  int64_t max_running = 0;       // admitted sequences, >= 1
  int64_t max_logit_rows = 0;    // rows of a step whose logits are wanted, >= 1
  double step_target_ms = 0;     // of a step with decodes; 0: none
  StepCost cost = {};            // what rows are expected to take
};

struct SequenceView {
  int priority = 0;      // higher first
  uint64_t arrival = 0;  // lower first, unique
  int64_t known = 0;     // tokens, > computed
  int64_t computed = 0;
  // Of its tables, with those behind the window, in groups that see all and in groups that do not;
  // while waiting: once it is admitted.
  int64_t full_blocks = 0, window_blocks = 0;
  int64_t own_blocks = 0;     // while running: that nobody else holds
  int64_t admit_blocks = 0;   // while waiting: that it holds once it is admitted
  int64_t shared_blocks = 0;  // of these, those that others hold
  int64_t later_blocks = 0;   // that its prompt will hold beside them (LaterBlocks)
  uint64_t last_step = 0;     // that computed a row of it; 0: none
  int64_t drafts = 0;         // of one that decodes: tokens that may follow, guessed
  bool all_logits = false;    // every row of its prefill needs logits (prompt log-probabilities)

  bool decodes() const { return known - computed == 1; }
};

struct BatchSnapshot {
  std::vector<SequenceView> running;  // any order
  std::vector<SequenceView> waiting;  // by turn; the front part is enough
  int64_t free_blocks = 0;
  // Tables of a sequence: groups of layers that see all, and those with a window.
  int full_groups = 1, window_groups = 0;
};

// Blocks that an admission leaves to `running` sequences of so many tables each: they go on for
// some steps before one has to give way.
constexpr int64_t ReserveBlocks(int64_t running, int64_t groups) {
  return (running + 3) / 4 * groups;
}

struct BatchPlan {
  struct Work {
    bool admitted_now = false;  // index is of waiting, else of running
    int index = 0;
    int64_t tokens = 0;  // rows: positions [computed, computed + tokens); beyond known: drafts
  };
  std::vector<int> preempt;  // of running: done first; they wait again
  std::vector<int> admit;    // of waiting
  std::vector<Work> work;    // decodes, then prefill chunks; they take the blocks that they need
};

// Blocks that several of those preempted hold together are not counted on: where the plan has no
// work but preempts, the next one after it does.
BatchPlan PlanBatch(const BatchSnapshot& now, const BatchLimits& limits);

}  // namespace switchyard::router
