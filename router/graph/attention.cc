#include "router/graph/attention.h"

#include "router/graph/gqa.h"
#include "router/graph/mla.h"

namespace switchyard::router {

std::unique_ptr<Attention> MakeAttention(const GraphContext& context) {
  if (context.spec.attention.kind == AttentionKind::kMla) {
    return std::make_unique<MlaAttention>(context);
  }
  return std::make_unique<GqaAttention>(context);
}

}  // namespace switchyard::router
