// What the engine's tests share: a sink that collects, and the tokens a request must give whatever
// happens around it.
#pragma once

#include <algorithm>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "router/loop/engine.h"
#include "router/sample/sampler.h"
#include "tests/support/fake_runner.h"

namespace switchyard::router {

inline EngineOptions SmallEngine() { return {.max_model_len = 512, .kv_blocks = 64}; }
inline EngineOptions Cut(int batch, int64_t blocks, int running = 256, int logits = 256) {
  return {.max_model_len = 512,
          .kv_blocks = blocks,
          .max_batch_tokens = batch,
          .max_running = running,
          .max_logit_rows = logits};
}

// All that came for one choice.
struct Output {
  std::vector<int32_t> tokens;
  std::vector<float> logprobs;
  std::vector<std::vector<TokenLogprob>> tops;
  std::vector<int32_t> routed_experts;
  std::vector<float> routed_weights;
  std::vector<PromptLogprob> prompt_logprobs;
  std::vector<LostExperts> degraded;  // of each token
  std::vector<Finish> finishes;       // one, if all is well
  int cached_tokens = 0;
  int events_without_token = 0;  // and without a finish
  absl::Status error;
  int retry_after_ms = 0;
  bool in_order = true;  // indices 0, 1, 2 …, routing without gaps, nothing after the finish
};

class CollectingSink : public TokenSink {
 public:
  explicit CollectingSink(int moe_width = 4) : moe_width_(moe_width) {}

  void OnStep(uint64_t step, std::vector<TokenEvent> events) override {
    absl::MutexLock lock(&mutex_);
    calls_in_step_[step] += 1;
    for (TokenEvent& event : events) Take(event);
  }

  // Waits until every choice of the request has its finish.
  void AwaitEnd(uint64_t request, int choices) {
    absl::MutexLock lock(&mutex_);
    const auto ended = [&] { return Ended(request) == choices; };
    mutex_.Await(absl::Condition(&ended));
  }
  // Waits until a choice has given so many tokens or its finish.
  void AwaitTokens(uint64_t request, int choice, size_t tokens) {
    absl::MutexLock lock(&mutex_);
    const auto enough = [&] {
      const Output& output = outputs_[{request, choice}];
      return output.tokens.size() >= tokens || !output.finishes.empty();
    };
    mutex_.Await(absl::Condition(&enough));
  }
  Output Of(uint64_t request, int choice = 0) {
    absl::MutexLock lock(&mutex_);
    return outputs_[{request, choice}];
  }
  int64_t events() {
    absl::MutexLock lock(&mutex_);
    return events_;
  }
  // Most OnStep calls with one step number.
  int max_calls_in_step() {
    absl::MutexLock lock(&mutex_);
    int most = 0;
    for (const auto& [step, calls] : calls_in_step_) most = std::max(most, calls);
    return most;
  }

 private:
  int Ended(uint64_t request) {
    int ended = 0;
    for (const auto& [key, output] : outputs_) {
      ended += key.first == request && !output.finishes.empty();
    }
    return ended;
  }

  void Take(TokenEvent& event) {
    ++events_;
    Output& to = outputs_[{event.request, event.choice}];
    to.cached_tokens += event.cached_tokens;
    to.in_order &= to.finishes.empty();
    if (!event.routed_experts.empty()) {
      to.in_order &=
          event.routing_first_position == static_cast<int>(to.routed_experts.size()) / moe_width_;
    }
    // What belongs to the prompt is complete with the first token.
    to.in_order &= event.prompt_logprobs.empty() || to.tokens.empty();
    to.routed_experts.insert(to.routed_experts.end(), event.routed_experts.begin(),
                             event.routed_experts.end());
    to.routed_weights.insert(to.routed_weights.end(), event.routed_weights.begin(),
                             event.routed_weights.end());
    for (PromptLogprob& p : event.prompt_logprobs) to.prompt_logprobs.push_back(std::move(p));
    if (event.index >= 0) {
      to.in_order &= event.index == static_cast<int>(to.tokens.size());
      to.tokens.push_back(event.id);
      to.logprobs.push_back(event.logprob);
      to.degraded.push_back(event.degraded);
      to.tops.push_back(std::move(event.top));
    } else if (event.finish == Finish::kNone) {
      ++to.events_without_token;
    }
    if (event.finish != Finish::kNone) to.finishes.push_back(event.finish);
    if (event.finish == Finish::kError) to.error = event.error;
    to.retry_after_ms = event.retry_after_ms;
  }

  const int moe_width_;
  absl::Mutex mutex_;
  std::map<std::pair<uint64_t, int>, Output> outputs_;
  std::map<uint64_t, int> calls_in_step_;
  int64_t events_ = 0;
};

// What choice `choice` of `request` must give: one sequence, one token at a time.
inline Output Expected(const EngineRequest& request, int choice, const EngineOptions& options,
                       const FakeRunnerOptions& model) {
  Output expected;
  Sampler sampler(model.vocab);
  TokenHistory history(request.sampling, request.prompt);
  std::vector<int32_t> stops = request.stop_token_ids;
  if (!request.sampling.ignore_eos) {
    stops.insert(stops.end(), model.eos_ids.begin(), model.eos_ids.end());
  }
  std::vector<int32_t> tokens = request.prompt;
  const size_t max_len =
      std::min<size_t>(request.prompt.size() + request.max_tokens, options.max_model_len);
  while (expected.finishes.empty()) {
    std::vector<int32_t> banned;
    if (static_cast<int>(expected.tokens.size()) < request.min_tokens) banned = stops;
    const std::vector<float> logits = FakeRunner::Logits(tokens, model.vocab, model.sees());
    const SampledToken token = *sampler.Sample({.logits = logits,
                                                .params = request.sampling,
                                                .history = history,
                                                .banned = banned,
                                                .choice = choice,
                                                .position = static_cast<int64_t>(tokens.size()),
                                                .top_logprobs = request.top_logprobs});
    history.AddOutput(token.id);
    tokens.push_back(token.id);
    expected.tokens.push_back(token.id);
    expected.logprobs.push_back(token.logprob);
    if (std::find(stops.begin(), stops.end(), token.id) != stops.end()) {
      expected.finishes = {Finish::kStop};
    } else if (tokens.size() >= max_len) {
      expected.finishes = {Finish::kLength};
    }
  }
  // The last token is never computed.
  for (size_t i = 1; request.return_routed_experts && i < tokens.size(); ++i) {
    const size_t first = model.sees() > 0 ? i - std::min<size_t>(i, model.sees()) : 0;
    const auto routing = FakeRunner::RoutingOf({tokens.begin() + first, tokens.begin() + i},
                                               model.moe_layers, model.top_k);
    expected.routed_experts.insert(expected.routed_experts.end(), routing.experts.begin(),
                                   routing.experts.end());
    expected.routed_weights.insert(expected.routed_weights.end(), routing.weights.begin(),
                                   routing.weights.end());
  }
  return expected;
}

// Guesses the most likely next tokens of a FakeRunner, and every fourth one wrong.
class FakeDrafter : public Drafter {
 public:
  explicit FakeDrafter(int vocab) : vocab_(vocab) {}

  void Draft(const DraftTask& task, std::vector<int32_t>* drafts) override {
    std::vector<int32_t> tokens(task.tokens.begin(), task.tokens.end());
    drafts->clear();
    for (int i = 0; i < task.most; ++i) {
      const std::vector<float> logits = FakeRunner::Logits(tokens, vocab_);
      const auto best =
          static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
      drafts->push_back(tokens.size() % 4 == 0 ? (best + 1) % vocab_ : best);
      tokens.push_back(drafts->back());
    }
  }

 private:
  const int vocab_;
};

inline EngineOptions Speculating(EngineOptions options, int drafts, int vocab = 61) {
  options.max_drafts = drafts;
  options.make_drafter = [vocab] { return std::make_unique<FakeDrafter>(vocab); };
  return options;
}

// An empty string if `got` is what was expected, otherwise what differs.
inline std::string Difference(const Output& got, const Output& expected) {
  if (!got.in_order) return "events out of order";
  if (got.finishes != expected.finishes) {
    return got.finishes.empty() ? "no finish" : "finish: " + std::string(got.error.message());
  }
  if (got.tokens != expected.tokens) return "tokens";
  if (got.logprobs != expected.logprobs) return "logprobs";
  if (got.routed_experts != expected.routed_experts) return "routed experts";
  if (got.routed_weights != expected.routed_weights) return "routed weights";
  return "";
}

}  // namespace switchyard::router
