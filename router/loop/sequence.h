// What the engine thread keeps of a request: its choices, each a sequence of its own with its own
// blocks and randomness. Owned by StepLoop.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/time/time.h"
#include "router/kv/block_table.h"
#include "router/loop/request.h"
#include "router/sample/token_history.h"

namespace switchyard::router {

struct RequestKey {
  const TokenSink* sink = nullptr;
  uint64_t request = 0;

  bool operator==(const RequestKey&) const = default;
  template <typename H>
  friend H AbslHashValue(H h, const RequestKey& key) {
    return H::combine(std::move(h), key.sink, key.request);
  }
};

struct Sequence;

struct Request {
  EngineRequest spec;
  absl::Time submitted;
  int64_t max_len = 0;            // tokens of prompt and output, at most
  std::vector<int32_t> stop_ids;  // ascending: the request's and, unless ignored, end-of-sequence
  std::vector<std::unique_ptr<Sequence>> choices;
  int open = 0;          // choices that have no finish yet
  bool started = false;  // a choice was admitted

  RequestKey key() const { return {spec.sink.get(), spec.request}; }
  int64_t prompt_len() const { return static_cast<int64_t>(spec.prompt.size()); }
};

struct Sequence {
  // kEnded: its finish was sent; its rows may still be in a step.
  enum class State { kWaiting, kRunning, kEnded };

  Sequence(Request& owner, int choice_index, uint64_t arrival_number)
      : request(owner), choice(choice_index), arrival(arrival_number) {}

  Request& request;
  const int choice;
  const uint64_t arrival;
  State state = State::kWaiting;

  // Made when first admitted, kept over preemptions (which empty the table).
  std::vector<int32_t> tokens;  // prompt and output
  std::optional<BlockTable> table;
  std::optional<TokenHistory> history;

  int64_t computed = 0;    // tokens whose K/V is in the blocks
  uint64_t last_step = 0;  // that computed a row of it
  absl::Time last_token;

  // Of rows computed, not yet sent. A row counts once, also when preemption makes it twice.
  int64_t traced = 0;      // rows below it have been traced
  int64_t trace_sent = 0;  // rows below it have been sent
  std::vector<int32_t> routed_experts;
  std::vector<float> routed_weights;
  int64_t scored = 0;  // rows below it have given their prompt log-probability
  std::vector<PromptLogprob> prompt_logprobs;

  int64_t known() const {
    return tokens.empty() ? request.prompt_len() : static_cast<int64_t>(tokens.size());
  }
  int64_t outputs() const { return known() - request.prompt_len(); }
  // The last prompt row predicts the first output token.
  bool scores_prompt() const {
    return request.spec.prompt_logprobs && choice == 0 && scored < request.prompt_len() - 1;
  }
};

// Rank of the batch policy: priority, then arrival.
struct RanksBefore {
  bool operator()(const Sequence* a, const Sequence* b) const {
    const int x = a->request.spec.priority, y = b->request.spec.priority;
    return x != y ? x > y : a->arrival < b->arrival;
  }
};

}  // namespace switchyard::router
