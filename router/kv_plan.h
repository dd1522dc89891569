// How many KV blocks a router gets and how long a sequence may become. Pure arithmetic.
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "services/model/spec.h"
#include "services/tensor/dtype.h"

namespace switchyard::router {

struct KvRequest {
  int64_t kv_bytes = 0;          // 0: half of what is free beside the weights
  int max_model_len = 0;         // 0: what the model and the KV memory allow
  uint64_t weight_bytes = 0;     // that this process holds or is going to
  uint64_t available_bytes = 0;  // before the weights; 0: not known, nothing is refused
};

struct KvPlan {
  int64_t blocks = 0;  // of kBlockTokens tokens of a group of layers (kv_layout.h)
  int64_t bytes = 0;   // of these blocks
  int64_t tokens = 0;  // that all layers can see at once
  int max_model_len = 0;
};

// RESOURCE_EXHAUSTED with both numbers where weights and KV do not fit in the memory, or a sequence
// of max_model_len not in the KV; INVALID_ARGUMENT if the model has fewer positions.
absl::StatusOr<KvPlan> PlanKv(const ModelSpec& spec, DType dtype, const KvRequest& request);

}  // namespace switchyard::router
