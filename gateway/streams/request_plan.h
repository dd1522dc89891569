// From what a client asks to what a router is told: checks every field, renders and tokenises the
// prompt, resolves defaults (the request, then generation_config.json, then OpenAI's). Pure.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "gateway/streams/served_model.h"
#include "gateway/upstream/router_client.h"
#include "switchyard/internal/v1/router.pb.h"
#include "switchyard/v1/inference.pb.h"

namespace switchyard::gateway {

inline constexpr int kChoicesMax = 128;
inline constexpr int kStopStringsMax = 16;
inline constexpr size_t kStopStringBytesMax = 1024;
inline constexpr int kStopTokenIdsMax = 128;
inline constexpr int kTopLogprobsMax = 20;
inline constexpr int kLogitBiasMax = 4096;
inline constexpr size_t kCacheSaltBytesMax = 1024;

struct RequestPlan {
  internal::v1::Submit submit;  // without `request`, `fair_key`, `trace_id` and deadline
  // What the gateway does with the tokens.
  std::vector<std::string> stops;
  bool include_stop = false;
  bool skip_special = true;
  std::optional<ReasoningTokens> reasoning;  // set for chats of thinking models
  bool starts_in_reasoning = false;
  int top_logprobs = -1;  // -1: none
  bool echo = false;
  bool echo_only = false;  // max_tokens 0: the one token that is made is not shown
  std::string echo_text;
  bool return_token_ids = false;
  bool return_routed_experts = false;
};

// `drawn_seed` is used where the request has none. Errors: INVALID_ARGUMENT (FieldError), NOT_FOUND
// for the model.
absl::StatusOr<RequestPlan> PlanRequest(const v1::GenerateRequest& request,
                                        const ServedModel& model, const ModelInfo& info,
                                        uint64_t drawn_seed);

// The ids of a prompt. A text of so many bytes that it must have more than `length_max` tokens is
// refused without being tokenised; `field` is what the error names.
absl::StatusOr<std::vector<int32_t>> TokenisePrompt(const ServedModel& model, std::string_view text,
                                                    bool add_special_tokens, int length_max,
                                                    std::string_view field);

}  // namespace switchyard::gateway
