#include "router/kv_plan.h"

#include <algorithm>
#include <limits>

#include "router/kv/kv_storage.h"
#include "router/kv/kv_tables.h"
#include "services/base/status.h"
#include "services/config/units.h"
#include "services/model/memory_plan.h"

namespace switchyard::router {
namespace {

// Where nobody knows what is free.
constexpr int64_t kUnknownDefaultBytes = int64_t{1} << 30;

absl::StatusOr<int64_t> KvBytes(const KvRequest& request) {
  const uint64_t available = request.available_bytes, weights = request.weight_bytes;
  if (available == 0) return request.kv_bytes > 0 ? request.kv_bytes : kUnknownDefaultBytes;
  const uint64_t free = available - std::min(available, weights);
  const uint64_t bytes = request.kv_bytes > 0 ? static_cast<uint64_t>(request.kv_bytes) : free / 2;
  const absl::Status fits = CheckFits(weights, bytes, available);
  if (fits.ok()) return static_cast<int64_t>(bytes);
  return request.kv_bytes > 0
             ? Annotate(fits, "--kv-memory " + config::FormatBytes(request.kv_bytes))
             : fits;
}

// Tokens of the longest sequence that so many blocks suffice for, up to `most`.
int LongestSequence(const KvLayout& layout, int64_t blocks, int most) {
  int fits = 0, beyond = most + 1;
  while (beyond - fits > 1) {
    const int tokens = fits + (beyond - fits) / 2;
    (LeastBlocks(layout.windows, tokens) <= blocks ? fits : beyond) = tokens;
  }
  return fits;
}

}  // namespace

absl::StatusOr<KvPlan> PlanKv(const ModelSpec& spec, DType dtype, const KvRequest& request) {
  if (request.max_model_len > spec.max_position) {
    return InvalidArgument("--max-model-len {}: the model has positions for {} tokens",
                           request.max_model_len, spec.max_position);
  }
  SY_ASSIGN_OR_RETURN(const int64_t bytes, KvBytes(request));
  const int64_t block_bytes = KvStorage::BlockBytes(spec, dtype);
  KvPlan plan;
  // A block is named by an int32.
  plan.blocks = std::min<int64_t>(bytes / block_bytes, std::numeric_limits<int32_t>::max());
  plan.bytes = plan.blocks * block_bytes;
  const KvLayout layout = KvLayoutOf(spec);
  plan.tokens = plan.blocks / layout.groups() * kBlockTokens;
  const int64_t least_tokens = std::max(1, request.max_model_len);
  const int64_t least_blocks = LeastBlocks(layout.windows, least_tokens);
  if (plan.blocks < least_blocks) {
    return ResourceExhausted(
        "a sequence of {} tokens needs {} of KV cache, there are {}; give more --kv-memory or less "
        "--max-model-len",
        least_tokens, config::FormatBytes(least_blocks * block_bytes), config::FormatBytes(bytes));
  }
  plan.max_model_len = request.max_model_len > 0
                           ? request.max_model_len
                           : LongestSequence(layout, plan.blocks, spec.max_position);
  return plan;
}

}  // namespace switchyard::router
