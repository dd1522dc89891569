// The gate's choice for one token: from logits to the top-k experts and the weights with which
// their outputs are added. What each family does is in GateSpec; ties go to the lower id, sums run
// over ids ascending.
//
// Serial and pure; any thread. A NaN among the logits gives some valid set of distinct experts.
#pragma once

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

}  // namespace switchyard::router
