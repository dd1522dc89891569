#include "router/loop/request_check.h"

#include <algorithm>
#include <cmath>

#include "router/kv/kv_tables.h"
#include "services/base/status.h"

namespace switchyard::router {
namespace {

absl::Status CheckRange(const char* field, double value, double low, double high) {
  if (value >= low && value <= high) return absl::OkStatus();
  return InvalidArgument("{} is {}; allowed: {} to {}", field, value, low, high);
}

absl::Status CheckToken(const char* field, int64_t id, int vocab) {
  if (id >= 0 && id < vocab) return absl::OkStatus();
  return InvalidArgument("{}: token id {} is outside of the vocabulary of {}", field, id, vocab);
}

absl::Status CheckSampling(const SamplingParams& s, int vocab) {
  SY_RETURN_IF_ERROR(CheckRange("temperature", s.temperature, 0, 100));
  if (s.top_k < 0) return InvalidArgument("top_k is {}; allowed: 0 (off) and more", s.top_k);
  if (!(s.top_p > 0 && s.top_p <= 1)) {
    return InvalidArgument("top_p is {}; allowed: above 0, up to 1", s.top_p);
  }
  SY_RETURN_IF_ERROR(CheckRange("min_p", s.min_p, 0, 1));
  if (!(s.repetition_penalty > 0) || !std::isfinite(s.repetition_penalty)) {
    return InvalidArgument("repetition_penalty is {}; it must be above 0", s.repetition_penalty);
  }
  SY_RETURN_IF_ERROR(CheckRange("presence_penalty", s.presence_penalty, -2, 2));
  SY_RETURN_IF_ERROR(CheckRange("frequency_penalty", s.frequency_penalty, -2, 2));
  for (const auto& [id, bias] : s.logit_bias) {
    SY_RETURN_IF_ERROR(CheckToken("logit_bias", id, vocab));
    SY_RETURN_IF_ERROR(CheckRange("logit_bias", bias, -100, 100));
  }
  return absl::OkStatus();
}

absl::Status CheckLengths(const EngineRequest& r, const EngineOptions& options,
                          const ModelSpec& spec) {
  const auto prompt = static_cast<int64_t>(r.prompt.size());
  if (prompt == 0) return InvalidArgument("prompt is empty");
  if (prompt >= options.max_model_len) {
    return InvalidArgument(
        "prompt has {} tokens; the model's length of {} tokens must hold it and one token more",
        prompt, options.max_model_len);
  }
  if (r.max_tokens < 1)
    return InvalidArgument("max_tokens is {}; it must be 1 or more", r.max_tokens);
  SY_RETURN_IF_ERROR(CheckRange("min_tokens", r.min_tokens, 0, r.max_tokens));
  // The last token is not computed any more.
  const int64_t blocks = LeastBlocks(KvLayoutOf(spec).windows, MaxLength(r, options) - 1);
  if (blocks > options.kv_blocks) {
    return InvalidArgument(
        "prompt of {} and max_tokens of {} need {} KV blocks of {} tokens; the cache has {}",
        prompt, r.max_tokens, blocks, kBlockTokens, options.kv_blocks);
  }
  return absl::OkStatus();
}

// What a request brings from a lost router.
absl::Status CheckContinuation(const EngineRequest& r, int64_t max_len, int vocab) {
  const auto prompt = static_cast<int64_t>(r.prompt.size());
  SY_RETURN_IF_ERROR(CheckRange("prompt_logprobs_until", r.prompt_logprobs_until, 0, prompt - 1));
  if (r.choices.empty()) return absl::OkStatus();
  if (static_cast<int>(r.choices.size()) != r.n) {
    return InvalidArgument("choices has {} entries; allowed: none, or n, which is {}",
                           r.choices.size(), r.n);
  }
  bool open = false;
  for (const ChoiceSoFar& choice : r.choices) {
    for (int32_t id : choice.tokens) SY_RETURN_IF_ERROR(CheckToken("choices.tokens", id, vocab));
    if (choice.ended) continue;
    open = true;
    const int64_t known = prompt + static_cast<int64_t>(choice.tokens.size());
    if (known >= max_len) {
      return InvalidArgument(
          "choices.tokens has {} ids behind a prompt of {}; a choice of {} tokens at most that has "
          "not ended has fewer",
          choice.tokens.size(), prompt, max_len);
    }
    SY_RETURN_IF_ERROR(CheckRange("choices.routing_until", choice.routing_until, 0, known - 1));
  }
  return open ? absl::OkStatus() : InvalidArgument("choices: all of them have ended");
}

}  // namespace

int64_t MaxLength(const EngineRequest& request, const EngineOptions& options) {
  const auto prompt = static_cast<int64_t>(request.prompt.size());
  return std::min<int64_t>(prompt + request.max_tokens, options.max_model_len);
}

absl::Status CheckRequest(const EngineRequest& request, const EngineOptions& options,
                          const ModelSpec& spec) {
  if (request.sink == nullptr) return InvalidArgument("sink is missing");
  SY_RETURN_IF_ERROR(CheckLengths(request, options, spec));
  for (int32_t id : request.prompt) SY_RETURN_IF_ERROR(CheckToken("prompt", id, spec.vocab));
  for (int32_t id : request.stop_token_ids) {
    SY_RETURN_IF_ERROR(CheckToken("stop_token_ids", id, spec.vocab));
  }
  SY_RETURN_IF_ERROR(CheckRange("n", request.n, 1, kMaxChoices));
  SY_RETURN_IF_ERROR(CheckContinuation(request, MaxLength(request, options), spec.vocab));
  SY_RETURN_IF_ERROR(CheckRange("top_logprobs", request.top_logprobs, -1, kMaxTopLogprobs));
  return CheckSampling(request.sampling, spec.vocab);
}

}  // namespace switchyard::router
