#include "tests/support/fake_runner.h"

#include <algorithm>
#include <limits>
#include <map>
#include <utility>

#include "router/kv/block_table.h"
#include "services/base/check.h"
#include "services/base/mix.h"

namespace switchyard::router {
namespace {

uint64_t HashOf(const std::vector<int32_t>& tokens) {
  uint64_t h = 0x9e3779b97f4a7c15;
  for (int32_t token : tokens) h = MixBits(h + static_cast<uint32_t>(token) + 1);
  return h;
}

float UnitFloat(uint64_t h) { return static_cast<float>(h >> 40) * 0x1p-24f; }

}  // namespace

FakeRunner::FakeRunner(FakeRunnerOptions options) : options_(std::move(options)) {
  spec_.vocab = options_.vocab;
  spec_.eos_ids = options_.eos_ids;
  spec_.gate.top_k = options_.top_k;
  for (int i = 0; i < options_.moe_layers; ++i) {
    const bool sees_all = options_.alternate && i % 2 == 1;
    spec_.layers.push_back({.moe = true, .window = sees_all ? 0 : options_.window});
  }
  layout_ = KvLayoutOf(spec_);
  slots_.resize(options_.kv_blocks * kBlockTokens);
}

std::vector<float> FakeRunner::Logits(const std::vector<int32_t>& tokens, int vocab, int window) {
  const bool cut = window > 0 && static_cast<int>(tokens.size()) > window;
  const uint64_t h = cut ? HashOf({tokens.end() - window, tokens.end()}) : HashOf(tokens);
  std::vector<float> logits(vocab);
  for (int v = 0; v < vocab; ++v) logits[v] = UnitFloat(MixBits(h + 7919 * (v + 1))) * 10 - 5;
  return logits;
}

FakeRunner::Routing FakeRunner::RoutingOf(const std::vector<int32_t>& tokens, int moe_layers,
                                          int top_k) {
  Routing routing;
  const uint64_t h = HashOf(tokens);
  for (int layer = 0; layer < moe_layers; ++layer) {
    int32_t expert = 0;
    for (int k = 0; k < top_k; ++k) {
      const uint64_t x = MixBits(h + 31 * layer + k + 1);
      expert += 1 + static_cast<int32_t>(x % 5);
      routing.experts.push_back(expert);
      routing.weights.push_back(UnitFloat(x));
    }
  }
  return routing;
}

void FakeRunner::Start(const StepBatch& batch) {
  absl::MutexLock lock(&mutex_);
  if (batch_ != nullptr) Error("a step was started while another runs");
  if (batch.rows() == 0) Error("an empty step");
  batch_ = &batch;
  waits_left_ = options_.waits;
  ++steps_;
  rows_ += batch.rows();
  max_rows_ = std::max(max_rows_, batch.rows());
  CheckRows(batch);
  CheckTables(batch);
}

void FakeRunner::CheckRows(const StepBatch& batch) {
  std::set<const int32_t*> seen;
  const std::vector<const int32_t*>& tables = batch.block_tables.front();
  for (int64_t r = 0; r < batch.rows(); ++r) {
    const int32_t position = batch.positions[r];
    if (r > 0 && tables[r] == tables[r - 1]) {
      if (position != batch.positions[r - 1] + 1)
        Error("positions of a sequence are not contiguous");
    } else if (!seen.insert(tables[r]).second) {
      Error("the rows of a sequence are not consecutive");
    }
    if (batch.tokens[r] < 0 || batch.tokens[r] >= options_.vocab) Error("token out of range");
  }
  if (!std::is_sorted(batch.logit_rows.begin(), batch.logit_rows.end())) Error("logit rows");
  if (!std::is_sorted(batch.trace_rows.begin(), batch.trace_rows.end())) Error("trace rows");
}

void FakeRunner::CheckTables(const StepBatch& batch) {
  std::map<int32_t, const int32_t*> writer_of_block;
  for (const auto& tables : batch.block_tables) {
    for (int64_t r = 0; r < batch.rows(); ++r) {
      const auto [at, fresh] =
          writer_of_block.try_emplace(tables[r][batch.positions[r] / kBlockTokens], tables[r]);
      if (!fresh && at->second != tables[r]) Error("two tables name a block that is written");
    }
  }
  for (int g = 0; g < layout_.groups(); ++g) {
    for (int64_t r = 0; r < batch.rows(); ++r) {
      const int32_t* table = batch.block_tables[g][r];
      const int64_t last = batch.positions[r] / kBlockTokens;
      for (int64_t b = FirstBlockSeen(batch.positions[r], layout_.windows[g]); b <= last; ++b) {
        if (table[b] < 0 || table[b] >= options_.kv_blocks) return Error("block out of range");
        const auto at = writer_of_block.find(table[b]);
        if (at != writer_of_block.end() && at->second != table) {
          Error("a block of one table is written to through another");
        }
      }
    }
  }
}

ModelRunner::Progress FakeRunner::Advance() {
  absl::MutexLock lock(&mutex_);
  SY_CHECK(batch_ != nullptr);
  if (std::exchange(given_up_, false)) {
    result_.lost.assign(std::exchange(batch_, nullptr)->rows(), 1);
    return Progress::kDone;
  }
  held_ = hold_;
  if (hold_) return Progress::kWaiting;
  if (waits_left_-- > 0) return Progress::kWaiting;
  Compute(*std::exchange(batch_, nullptr));
  return Progress::kDone;
}

void FakeRunner::Wait(absl::Time until) {
  absl::MutexLock lock(&mutex_);
  ++wait_calls_;
  const auto released = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return !hold_; };
  mutex_.AwaitWithDeadline(absl::Condition(&released), until);
  stuck_ = stick_;
  if (stuck_) mutex_.Await(absl::Condition(&released));
}

void FakeRunner::Abandon() {
  absl::MutexLock lock(&mutex_);
  SY_CHECK(batch_ != nullptr);
  ++abandoned_;
  given_up_ = true;
  held_ = false;
}

void FakeRunner::CopyBlock(int32_t from, int32_t to) {
  absl::MutexLock lock(&mutex_);
  if (batch_ != nullptr) Error("a block is copied while a step runs");
  ++copies_;
  std::copy_n(slots_.begin() + int64_t{from} * kBlockTokens, kBlockTokens,
              slots_.begin() + int64_t{to} * kBlockTokens);
}

void FakeRunner::Compute(const StepBatch& batch) {
  for (int g = 0; g < layout_.groups(); ++g) {
    for (int64_t r = 0; r < batch.rows(); ++r) {
      SlotOf(batch, r, g, batch.positions[r]) = {batch.tokens[r], batch.positions[r], g};
    }
  }
  result_ = {};
  result_.lost.assign(batch.rows(), 0);
  result_.degraded.assign(batch.rows(), 0);
  logits_.clear();
  for (int64_t r = 0; options_.degrade_row && r < batch.rows(); ++r) {
    result_.degraded[r] = static_cast<uint8_t>(options_.degrade_row(ReadBack(batch, r)));
  }
  for (int64_t r = 0; options_.lose_row && r < batch.rows(); ++r) {
    result_.lost[r] = options_.lose_row(ReadBack(batch, r));
  }
  for (int32_t r : batch.logit_rows) {
    const std::vector<int32_t> tokens = ReadBack(batch, r);
    std::vector<float> logits = Logits(tokens, options_.vocab);
    if (options_.nan_logits && options_.nan_logits(tokens)) {
      logits[options_.vocab / 2] = std::numeric_limits<float>::quiet_NaN();
    }
    logits_.insert(logits_.end(), logits.begin(), logits.end());
  }
  for (int32_t r : batch.trace_rows) {
    const Routing routing = RoutingOf(ReadBack(batch, r), options_.moe_layers, options_.top_k);
    result_.routed_experts.insert(result_.routed_experts.end(), routing.experts.begin(),
                                  routing.experts.end());
    result_.routed_weights.insert(result_.routed_weights.end(), routing.weights.begin(),
                                  routing.weights.end());
  }
  result_.logits = logits_.data();
}

FakeRunner::Slot& FakeRunner::SlotOf(const StepBatch& batch, int64_t row, int group,
                                     int32_t position) {
  const int32_t block = batch.block_tables[group][row][position / kBlockTokens];
  return slots_[int64_t{block} * kBlockTokens + position % kBlockTokens];
}

std::vector<int32_t> FakeRunner::ReadGroup(const StepBatch& batch, int64_t row, int group) {
  std::vector<int32_t> tokens;
  const int32_t position = batch.positions[row];
  const int window = layout_.windows[group];
  for (int32_t p = window > 0 ? std::max(0, position - window + 1) : 0; p <= position; ++p) {
    const Slot& slot = SlotOf(batch, row, group, p);
    if (slot.position != p) Error("a block holds another position than its table says");
    if (slot.group != group) Error("a block holds what another group has written");
    tokens.push_back(slot.token);
  }
  return tokens;
}

std::vector<int32_t> FakeRunner::ReadBack(const StepBatch& batch, int64_t row) {
  const std::vector<int32_t> tokens = ReadGroup(batch, row, 0);  // that sees all, if one does
  for (int g = 1; g < layout_.groups(); ++g) {
    const std::vector<int32_t> seen = ReadGroup(batch, row, g);
    if (!std::equal(seen.rbegin(), seen.rend(), tokens.rbegin())) {
      Error("the groups hold different tokens");
    }
  }
  return tokens;
}

void FakeRunner::Error(std::string what) {
  if (errors_.size() < 10) errors_.push_back(std::move(what));
}

void FakeRunner::Hold() {
  absl::MutexLock lock(&mutex_);
  hold_ = true;
}

void FakeRunner::Release() {
  absl::MutexLock lock(&mutex_);
  hold_ = held_ = stick_ = stuck_ = false;
}

void FakeRunner::AwaitHeld() {
  absl::MutexLock lock(&mutex_);
  mutex_.Await(absl::Condition(&held_));
}

void FakeRunner::Stick() {
  absl::MutexLock lock(&mutex_);
  stick_ = true;
  mutex_.Await(absl::Condition(&stuck_));
}

std::vector<std::string> FakeRunner::errors() const {
  absl::MutexLock lock(&mutex_);
  return errors_;
}
int64_t FakeRunner::steps() const {
  absl::MutexLock lock(&mutex_);
  return steps_;
}
int64_t FakeRunner::rows() const {
  absl::MutexLock lock(&mutex_);
  return rows_;
}
int64_t FakeRunner::copies() const {
  absl::MutexLock lock(&mutex_);
  return copies_;
}
int64_t FakeRunner::max_rows() const {
  absl::MutexLock lock(&mutex_);
  return max_rows_;
}
int64_t FakeRunner::waits() const {
  absl::MutexLock lock(&mutex_);
  return wait_calls_;
}
int64_t FakeRunner::abandoned() const {
  absl::MutexLock lock(&mutex_);
  return abandoned_;
}

}  // namespace switchyard::router
