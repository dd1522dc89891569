// How well a model predicts conversations that it never saw (tests/golden/heldout), through the
// real decoder: what a routing policy costs in quality.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "router/graph/routing_policy.h"
#include "services/tokenizer/tokenizer.h"
#include "tests/support/decoder_harness.h"

namespace switchyard::test {

struct Conversation {
  std::string family;
  std::vector<int32_t> prompt, completion;
};

// Dies with the file's name where it is missing or broken.
std::vector<Conversation> LoadHeldout(const std::string& path, const Tokenizer& tokenizer);

struct Quality {
  int64_t tokens = 0;  // of completions
  double loss = 0;     // nats a token, teacher-forced
  double top1 = 0;     // share of tokens that were the likeliest
  router::RoutingCounts counts;

  // Of a token in a layer; 0 without a policy.
  double experts() const;
};

// The conversations in steps of `streams` whole ones.
Quality MeasureQuality(const LoadedModel& model, const HarnessOptions& options,
                       const std::vector<Conversation>& heldout, size_t streams);

// Share of conversations whose greedy completion ends as the held-out one, after the reasoning.
// `streams` of them are decoded at a time.
double MeasureExact(const LoadedModel& model, const HarnessOptions& options,
                    const std::vector<Conversation>& heldout, size_t streams,
                    const Tokenizer& tokenizer);

}  // namespace switchyard::test
