// How the tokens of a request are drawn and scored, in plain data; every default is resolved.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

namespace switchyard::router {

// See Sampling in inference.proto.
struct SamplingParams {
  float temperature = 0;  // 0: greedy
  int top_k = 0;          // 0: off
  float top_p = 1;
  float min_p = 0;
  float repetition_penalty = 1;
  float presence_penalty = 0;
  float frequency_penalty = 0;
  std::vector<std::pair<int32_t, float>> logit_bias;
  uint64_t seed = 0;
  bool ignore_eos = false;
};

struct TokenLogprob {
  int32_t id = 0;
  float logprob = 0;
};

}  // namespace switchyard::router
