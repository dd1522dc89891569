// Asks a LocalCluster through its public gRPC front, as a client would.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "sdk/embedded/local_cluster.h"
#include "services/tensor/dtype.h"
#include "switchyard/v1/inference.pb.h"

namespace switchyard::test {

struct Ask {
  std::vector<int32_t> prompt;
  int max_tokens = 16;
  float temperature = 0;
  uint64_t seed = 1;
};

struct Answer {
  absl::Status status;
  std::vector<int32_t> ids;
  // Of each token: its log-probability, then the ids and log-probabilities of the best three.
  std::vector<float> logprobs;
  v1::Degraded degraded = v1::DEGRADED_NO;  // as the last chunk says

  bool operator==(const Answer&) const = default;
};

// A model directory with weights of tests/golden/models/NAME (or models/NAME), or of NAME.SCHEME
// (tests/support/make_quantised.py), and the tokenizer of tiny-r1, which the random checkpoints
// share.
std::string ServableModel(const std::string& name);

// parts empty: embedded, else one worker a part, over sockets. Dies if it does not get ready.
std::unique_ptr<embedded::LocalCluster> StartCluster(const std::string& model, DType dtype,
                                                     std::vector<std::string> parts,
                                                     router::RouterOptions router = {},
                                                     int routers = 1);

Answer Generate(embedded::LocalCluster& cluster, const Ask& ask);
// All at once, each on a thread of its own.
std::vector<Answer> GenerateAll(embedded::LocalCluster& cluster, const std::vector<Ask>& asks);

}  // namespace switchyard::test
