// Whether a request can be served at all.
#pragma once

#include "absl/status/status.h"
#include "router/loop/engine.h"
#include "router/loop/request.h"
#include "services/model/spec.h"

namespace switchyard::router {

inline constexpr int kMaxChoices = 128;
inline constexpr int kMaxTopLogprobs = 20;

// INVALID_ARGUMENT names the field, what was found and what is allowed.
absl::Status CheckRequest(const EngineRequest& request, const EngineOptions& options,
                          const ModelSpec& spec);

// Tokens of prompt and output that the request may reach.
int64_t MaxLength(const EngineRequest& request, const EngineOptions& options);

}  // namespace switchyard::router
