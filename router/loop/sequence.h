// What the engine thread keeps of a request: its choices, each a sequence of its own with its own
// randomness and tables. Where it is the same to the client, the first of them computes the prompt
// and the others fork from it. Owned by StepLoop.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <vector>

#include "absl/time/time.h"
#include "router/draft/drafter.h"
#include "router/kv/kv_tables.h"
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
  int open = 0;           // choices that have no finish yet
  int held = 0;           // of these, choices that are kHeld
  bool started = false;   // a choice was admitted
  int cached_tokens = 0;  // of the prompt, found when the first choice was admitted

  RequestKey key() const { return {spec.sink.get(), spec.request}; }
  int64_t prompt_len() const { return static_cast<int64_t>(spec.prompt.size()); }
  // The routing of its prompt is told for each choice, as it is computed for it.
  bool forks() const { return spec.n > 1 && !spec.return_routed_experts; }
};

struct Sequence {
  // kHeld: another choice computes the prompt for it. kEnded: its finish was sent; its rows may
  // still be in a step.
  enum class State { kHeld, kWaiting, kRunning, kEnded };
  static constexpr int64_t kAllSound = std::numeric_limits<int64_t>::max();

  Sequence(Request& owner, int choice_index, uint64_t arrival_number)
      : request(owner), choice(choice_index), arrival(arrival_number) {}

  Request& request;
  const int choice;
  const uint64_t arrival;
  State state = State::kWaiting;

  // Made when first admitted (the tokens of a continued choice: when it came), kept over
  // preemptions, which empty the tables.
  std::vector<int32_t> tokens;  // prompt and output
  std::optional<KvTables> tables;
  std::optional<TokenHistory> history;

  std::unique_ptr<Drafter> drafter;  // where tokens are guessed
  std::vector<int32_t> drafts;       // for the step: what may follow `tokens`
  int draft_most = 0;                // guesses that are worth their rows, as it looks

  int64_t computed = 0;              // tokens whose K/V is in the blocks
  int64_t sound = kAllSound;         // rows below it were computed by the experts that are theirs
  int64_t published = 0;             // blocks that can be found, or are shared
  std::vector<BlockDigest> digests;  // of the first full blocks of its tokens, as far as was asked
  LostExperts degraded = LostExperts::kFail;  // what replaced experts of one, ever
  uint64_t last_step = 0;                     // that computed a row of it
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
  const std::vector<int32_t>& known_tokens() const {
    return tokens.empty() ? request.spec.prompt : tokens;
  }
  int64_t outputs() const { return known() - request.prompt_len(); }
  // Those that another router made.
  int64_t outputs_before() const {
    const auto& choices = request.spec.choices;
    return choices.empty() ? 0 : static_cast<int64_t>(choices[choice].tokens.size());
  }
  // The last prompt row predicts the first output token.
  bool scores_prompt() const {
    return request.spec.prompt_logprobs && choice == 0 && scored < request.prompt_len() - 1;
  }
  // Tokens that need not be computed if their K/V is found: all but the last, whose logits are
  // wanted, and those whose rows still owe the client something.
  int64_t skippable() const {
    int64_t tokens_below = known() - 1;
    if (request.spec.return_routed_experts) tokens_below = std::min(tokens_below, traced);
    return scores_prompt() ? std::min(tokens_below, scored) : tokens_below;
  }
};

}  // namespace switchyard::router
