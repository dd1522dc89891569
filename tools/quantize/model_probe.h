// A checkpoint's forward pass over a text, in this process and without a server: how well it
// predicts the text, and what its MLPs are given. The same router graph, worker and kernels as in
// service.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "router/dispatch/dispatcher.h"
#include "services/checkpoint/tensor_source.h"
#include "services/kernels/kernels.h"
#include "services/model/spec.h"

namespace switchyard::quantize {

class ModelProbe {
 public:
  // Called with every job of rows for experts before it is computed; may compute on the pool.
  using Observer = std::function<void(const router::MoeJob&)>;
  using ProgressFn = std::function<void(uint64_t done, uint64_t total)>;

  // Rows and weights as `--dtype bfloat16` has them.
  static absl::StatusOr<std::unique_ptr<ModelProbe>> Open(const std::string& directory, int threads,
                                                          const std::string& isa);
  ~ModelProbe();

  // exp of the mean negative log-likelihood of each token behind those before it in its window.
  // Windows have up to 512 tokens and, if `first` is >= 0, begin with it, uncounted, and with each
  // one in the text: documents do not see each other.
  // INVALID_ARGUMENT where there is nothing to predict.
  absl::StatusOr<double> Perplexity(std::span<const int32_t> tokens, int32_t first,
                                    const ProgressFn& progress, Observer observer = nullptr);

  const ModelSpec& spec() const;
  checkpoint::TensorSource& source();  // with all weights mapped
  const kernels::Compute& compute() const;

 private:
  struct Parts;
  explicit ModelProbe(std::unique_ptr<Parts> parts);
  // Σ -log p(window[i + 1] | window[0 … i]).
  absl::StatusOr<double> LossOf(std::span<const int32_t> window);

  std::unique_ptr<Parts> parts_;
};

}  // namespace switchyard::quantize
