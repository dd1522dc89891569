// What the engine takes and gives, in plain data: the router's own half of router.proto. The engine
// sees token ids and sequences; no text, no user.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "router/graph/lost_experts.h"
#include "router/sample/sampling_params.h"

namespace switchyard::router {

struct PromptLogprob {
  int32_t position = 0;
  float logprob = 0;
  std::vector<TokenLogprob> top;
};

enum class Finish { kNone, kStop, kLength, kCancelled, kError };

// One event of one choice. index -1: no token, only its finish or what was computed before one.
struct TokenEvent {
  uint64_t request = 0;
  uint32_t attempt = 0;
  int choice = 0;
  int index = -1;
  int32_t id = 0;
  float logprob = 0;
  std::vector<TokenLogprob> top;  // best first
  Finish finish = Finish::kNone;
  absl::Status error;      // with kError
  int retry_after_ms = 0;  // with RESOURCE_EXHAUSTED
  bool elsewhere = false;  // with an error that is not the request's: another router may take it
  // Routing of the positions computed for this choice since the last event: [positions × moe_layers
  // × top_k].
  int routing_first_position = 0;
  std::vector<int32_t> routed_experts;
  std::vector<float> routed_weights;
  std::vector<PromptLogprob> prompt_logprobs;  // of choice 0, up to its first token; each once
  int cached_tokens = 0;  // with a first token: of the prompt, that were not computed for it
  // What replaced experts of a row that this choice's tokens depend on; kFail: nothing did.
  LostExperts degraded = LostExperts::kFail;
};

// Where a client stream's tokens go. Called by the engine thread with all events of one step that
// belong to this sink; must only enqueue. Shared by all requests of a gateway's stream.
class TokenSink {
 public:
  virtual ~TokenSink() = default;
  virtual void OnStep(uint64_t step, std::vector<TokenEvent> events) = 0;
};

// What the client has of a choice already, from a router that was lost.
struct ChoiceSoFar {
  std::vector<int32_t> tokens;
  bool ended = false;     // nothing more is wanted of it: no event comes
  int routing_until = 0;  // routing of the positions below has come
};

struct EngineRequest {
  uint64_t request = 0;  // unique in its sink
  uint32_t attempt = 0;
  std::string trace_id;  // for logs and errors
  std::vector<int32_t> prompt;
  SamplingParams sampling;
  int max_tokens = 1;
  int min_tokens = 0;
  int n = 1;
  std::vector<int32_t> stop_token_ids;
  int top_logprobs = -1;  // -1: no log-probabilities
  bool prompt_logprobs = false;
  bool return_routed_experts = false;
  int priority = 0;
  std::string fair_key;
  std::string cache_salt;
  absl::Time deadline = absl::InfiniteFuture();
  std::vector<ChoiceSoFar> choices;  // none, or n: the request goes on behind these
  int prompt_logprobs_until = 0;     // the last position whose log-probabilities have come
  std::shared_ptr<TokenSink> sink;
};

}  // namespace switchyard::router
