// The gate's choice for one token: from logits to the top-k experts and the weights with which
// their outputs are added. What each family does is in GateSpec; ties go to the lower id, sums run
// over ids ascending. The parts stand by themselves too, for policies that choose otherwise
// (routing_policy.h).
//
// Serial and pure; any thread. A NaN among the logits gives some valid set of distinct experts.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "services/model/spec.h"

namespace switchyard::router {

// Floats of scratch that SelectExperts needs beside the logits.
int64_t GateScratch(const GateSpec& gate, int experts);

// `logits` [experts] are overwritten with the scores. `correction_bias` is [experts] or empty.
// `ids` [top_k] come out ascending, with `weights` [top_k].
void SelectExperts(const GateSpec& gate, std::span<float> logits,
                   std::span<const float> correction_bias, float* scratch, int32_t* ids,
                   float* weights);

// The choice once more, of the scores that SelectExperts left in its `logits`, as if the experts
// that are `gone` [experts] were not in the model: of ids.size() experts, or of as many as the gate
// may choose from. Returns how many; a NaN is none of them.
size_t SelectWithout(const GateSpec& gate, std::span<const uint8_t> gone,
                     std::span<const float> scores, std::span<const float> correction_bias,
                     float* scratch, std::span<int32_t> ids, float* weights);

// The indices of the k largest of x, best first into out. Equal values keep the lower index first,
// and a NaN never displaces anything.
void TopK(const float* x, int64_t n, int64_t k, int32_t* out);

// Whether the experts of some groups are masked.
bool LimitsGroups(const GateSpec& gate);

// The scores that weights are made of, of those that SelectExperts leaves in `logits` and at the
// head of `scratch`.
const float* WeighedScores(const GateSpec& gate, bool has_correction_bias, const float* logits,
                           const float* scratch);

// The weights of any number of experts, ids ascending, as the model's family makes them.
void WeighExperts(const GateSpec& gate, const float* scores, std::span<const int32_t> ids,
                  float* weights);

}  // namespace switchyard::router
