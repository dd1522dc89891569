#include "router/schedule/batch_policy.h"

#include <algorithm>
#include <limits>
#include <tuple>

#include "router/kv/kv_tables.h"
#include "services/base/check.h"

namespace switchyard::router {
namespace {

// Ascending: best first.
auto Rank(const SequenceView& s) { return std::make_tuple(-int64_t{s.priority}, s.arrival); }

// One call of PlanBatch: the snapshot and what is left of the budgets.
class Planner {
 public:
  Planner(const BatchSnapshot& now, const BatchLimits& limits)
      : now_(now),
        rows_left_(limits.max_batch_tokens),
        logits_left_(limits.max_logit_rows),
        max_running_(limits.max_running),
        step_target_ms_(limits.step_target_ms),
        cost_(limits.cost),
        running_(now.running),
        waiting_(now.waiting),
        free_blocks_(now.free_blocks),
        running_count_(static_cast<int64_t>(now.running.size())),
        state_(now.running.size(), State::kIdle) {
    for (int i = 0; i < static_cast<int>(running_.size()); ++i) by_rank_.push_back(i);
    for (const SequenceView& s : running_) promised_ += s.later_blocks;
    std::sort(by_rank_.begin(), by_rank_.end(),
              [&](int a, int b) { return Rank(running_[a]) < Rank(running_[b]); });
  }

  BatchPlan Plan() {
    Displace();
    RunDecodes();
    Speculate();
    Prefill();
    return std::move(plan_);
  }

 private:
  enum class State { kIdle, kHasWork, kPreempted };
  struct Cut {
    size_t work;
    SequenceView* view;
  };

  void Preempt(int index) {
    state_[index] = State::kPreempted;
    free_blocks_ += running_[index].own_blocks;
    promised_ -= running_[index].later_blocks;
    --running_count_;
    short_of_blocks_ = true;
    plan_.preempt.push_back(index);
  }

  void Admit(int index, int64_t blocks) {
    free_blocks_ -= blocks;
    promised_ += waiting_[static_cast<size_t>(index)].later_blocks;
    ++running_count_;
    plan_.admit.push_back(index);
  }

  // The best of those that wait takes the place of running sequences of lower priorities.
  void Displace() {
    for (size_t w = 0; w < now_.waiting.size(); ++w) {
      const SequenceView& wants = now_.waiting[w];
      if (CanAdmit(wants)) return;
      // Those that it shares may be held by the very ones that it displaces.
      const int64_t need = wants.admit_blocks;
      int64_t blocks = free_blocks_, running = running_count_;
      std::vector<int> victims;
      for (size_t i = by_rank_.size(); i-- > 0 && (blocks < need || running >= max_running_);) {
        const int index = by_rank_[i];
        if (state_[index] == State::kPreempted) continue;
        if (running_[index].priority >= wants.priority) break;
        victims.push_back(index);
        blocks += running_[index].own_blocks;
        --running;
      }
      if (victims.empty() || blocks < need || running >= max_running_) return;
      for (int index : victims) Preempt(index);
      Admit(static_cast<int>(w), need);
      ++displacing_;
    }
  }

  // Blocks that the tables of a sequence lack for its first `tokens` tokens.
  int64_t Lacks(const SequenceView& s, int64_t tokens) const {
    const int64_t blocks = BlocksFor(tokens);
    return now_.full_groups * std::max<int64_t>(0, blocks - s.full_blocks) +
           now_.window_groups * std::max<int64_t>(0, blocks - s.window_blocks);
  }

  // Gives a running sequence the blocks of its next row: free ones, or those of sequences of lower
  // rank. False if there are too few.
  bool FindBlocks(int for_index) {
    SequenceView& s = running_[for_index];
    const int64_t need = Lacks(s, s.computed + 1);
    for (size_t i = by_rank_.size(); free_blocks_ < need && i-- > 0;) {
      const int victim = by_rank_[i];
      if (victim == for_index) break;
      if (state_[victim] == State::kIdle) Preempt(victim);
    }
    if (free_blocks_ < need) {
      short_of_blocks_ = true;
      return false;
    }
    Grow(s, s.computed + 1);
    return true;
  }

  void Grow(SequenceView& s, int64_t tokens) {
    const int64_t lacks = Lacks(s, tokens), promised = std::min(lacks, s.later_blocks);
    free_blocks_ -= lacks;
    promised_ -= promised;
    s.later_blocks -= promised;
    s.own_blocks += lacks;
    s.full_blocks = std::max(s.full_blocks, BlocksFor(tokens));
    s.window_blocks = std::max(s.window_blocks, BlocksFor(tokens));
  }

  // And finds blocks for prefills that have none left.
  void RunDecodes() {
    std::vector<int> order;
    for (int index : by_rank_) {
      const SequenceView& s = running_[index];
      if (s.decodes() || Lacks(s, s.computed + 1) > 0) order.push_back(index);
    }
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) {
      const SequenceView &x = running_[a], &y = running_[b];
      return std::make_tuple(-int64_t{x.priority}, x.last_step) <
             std::make_tuple(-int64_t{y.priority}, y.last_step);
    });
    for (int index : order) {
      if (rows_left_ == 0 || logits_left_ == 0) return;
      if (state_[index] == State::kPreempted) continue;
      if (!FindBlocks(index) || !running_[index].decodes()) continue;
      state_[index] = State::kHasWork;
      Take(false, index, 1, 1);
    }
  }

  // Rows of drafts, each of which wants logits, for the decodes that were taken.
  void Speculate() {
    if (short_of_blocks_) return;
    for (BatchPlan::Work& work : plan_.work) {
      SequenceView& s = running_[work.index];
      int64_t drafts = std::min({s.drafts, rows_left_, logits_left_});
      while (drafts > 0 && Lacks(s, s.known + drafts) > free_blocks_) --drafts;
      Grow(s, s.known + drafts);
      rows_left_ -= drafts;
      logits_left_ -= drafts;
      work.tokens += drafts;
    }
  }

  void Take(bool admitted_now, int index, int64_t tokens, int64_t logits) {
    rows_left_ -= tokens;
    logits_left_ -= logits;
    plan_.work.push_back({admitted_now, index, tokens});
  }

  // Rows for which there are blocks.
  int64_t RowsHeld(const SequenceView& s, int64_t done) const {
    if (now_.window_groups == 0) return s.known - s.computed - done;
    return (s.window_blocks + free_blocks_ / now_.window_groups) * kBlockTokens - s.computed - done;
  }

  // Rows for the next part of a prefill of which `done` are in the plan: `most` or fewer.
  int64_t ChunkRows(const SequenceView& s, int64_t done, int64_t most) const {
    const int64_t missing = s.known - s.computed - done;
    int64_t tokens = std::min(missing, most);
    if (s.all_logits) return std::min(tokens, logits_left_);
    if (tokens == missing && logits_left_ == 0) --tokens;  // all but the row that samples
    return tokens;
  }

  // What time, budget and blocks leave to a chunk that begins there. Decodes leave some time
  // always, so that prompts go on.
  int64_t MostRows(const SequenceView& s, int64_t done) const {
    const int64_t timely = cost_.RowsWithin(ms_left_, s.computed + done);
    return std::min({rows_left_, std::max(timely, kLeastChunk - prefill_rows_), RowsHeld(s, done)});
  }

  void AddRows(BatchPlan::Work& work, SequenceView& s, int64_t tokens) {
    const int64_t first = s.computed + work.tokens;
    Grow(s, first + tokens);
    StepShape shape;
    shape.Add(first, tokens);
    ms_left_ -= cost_.Of(shape) - cost_.fixed_ms;
    rows_left_ -= tokens;
    prefill_rows_ += tokens;
    logits_left_ -= s.all_logits ? tokens : (first + tokens == s.known ? 1 : 0);
    work.tokens += tokens;
  }

  void PrefillChunk(bool admitted_now, int index, bool others_wait) {
    SequenceView& s = admitted_now ? waiting_[index] : running_[index];
    const int64_t most = MostRows(s, 0);
    int64_t tokens = ChunkRows(s, 0, most);
    const bool cut = others_wait && s.known - s.computed > most && tokens >= 2 * kBlockTokens;
    if (cut) tokens /= 2;
    if (tokens <= 0) return;
    if (!admitted_now) state_[index] = State::kHasWork;
    plan_.work.push_back({admitted_now, index, 0});
    AddRows(plan_.work.back(), s, tokens);
    if (cut) cut_.push_back({plan_.work.size() - 1, &s});
  }

  // What nobody else wanted goes to those that were given less.
  void FillUp() {
    for (const Cut& cut : cut_) {
      BatchPlan::Work& work = plan_.work[cut.work];
      const int64_t tokens = ChunkRows(*cut.view, work.tokens, MostRows(*cut.view, work.tokens));
      if (tokens > 0) AddRows(work, *cut.view, tokens);
    }
  }

  // The time that decodes leave.
  void StartClock() {
    if (step_target_ms_ <= 0 || plan_.work.empty()) return;
    StepShape decodes;
    for (const BatchPlan::Work& work : plan_.work) {
      decodes.Add(running_[work.index].computed, work.tokens);
    }
    ms_left_ = step_target_ms_ - cost_.Of(decodes);
  }

  static int64_t MissingBlocks(const SequenceView& s) { return s.admit_blocks - s.shared_blocks; }

  // Only while nobody is preempted: then what it shares stays where it is. What windows will hold
  // later must be there too, unless somebody of a lower priority would give way then.
  bool CanAdmit(const SequenceView& s) const {
    if (short_of_blocks_ || running_count_ >= max_running_) return false;
    const bool lower = !by_rank_.empty() && running_[by_rank_.back()].priority < s.priority;
    const int64_t later = lower ? 0 : s.later_blocks + promised_;
    const int64_t reserve = ReserveBlocks(running_count_, now_.full_groups + now_.window_groups);
    return free_blocks_ >= MissingBlocks(s) + later + reserve;
  }

  // Running prefills and admissions; of one priority those that run come first.
  void Prefill() {
    StartClock();
    size_t w = 0, r = 0;
    const auto skip = [&] {
      while (r < by_rank_.size() &&
             (state_[by_rank_[r]] != State::kIdle || running_[by_rank_[r]].decodes())) {
        ++r;
      }
    };
    while (rows_left_ > 0 && (ms_left_ > 0 || prefill_rows_ < kLeastChunk)) {
      skip();
      const bool has_running = r < by_rank_.size(), has_waiting = w < now_.waiting.size();
      if (!has_running && !has_waiting) break;
      if (!has_waiting ||
          (has_running && running_[by_rank_[r]].priority >= now_.waiting[w].priority)) {
        const int index = by_rank_[r++];
        skip();
        PrefillChunk(false, index, r < by_rank_.size() || has_waiting);
        continue;
      }
      if (w >= displacing_) {
        if (!CanAdmit(now_.waiting[w])) {
          w = now_.waiting.size();
          continue;
        }
        Admit(static_cast<int>(w), MissingBlocks(now_.waiting[w]));
      }
      PrefillChunk(true, static_cast<int>(w), has_running || w + 1 < now_.waiting.size());
      ++w;
    }
    FillUp();
  }

  const BatchSnapshot& now_;
  int64_t rows_left_, logits_left_;
  const int64_t max_running_;
  const double step_target_ms_;
  const StepCost cost_;
  double ms_left_ = std::numeric_limits<double>::infinity();  // for prefill
  std::vector<Cut> cut_;                                      // prompts that were given less
  std::vector<SequenceView> running_, waiting_;               // with the blocks they are given
  int64_t free_blocks_, running_count_;
  int64_t promised_ = 0;      // later_blocks of those that run
  std::vector<State> state_;  // of running
  std::vector<int> by_rank_;  // running, best first
  int64_t prefill_rows_ = 0;
  size_t displacing_ = 0;  // so many of waiting were admitted by Displace
  bool short_of_blocks_ = false;
  BatchPlan plan_;
};

}  // namespace

BatchPlan PlanBatch(const BatchSnapshot& now, const BatchLimits& limits) {
  SY_CHECK(limits.max_batch_tokens > 0 && limits.max_running > 0 && limits.max_logit_rows > 0);
  return Planner(now, limits).Plan();
}

}  // namespace switchyard::router
