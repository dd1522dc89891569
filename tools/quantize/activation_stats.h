// What the MLPs of a MoE model are given on a text: for each channel of their inputs, and of what
// their down projections multiply, how large it is. Fed by a ModelProbe.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "services/kernels/kernels.h"
#include "services/model/tensor_names.h"
#include "services/tensor/buffer.h"
#include "tools/quantize/model_probe.h"

namespace switchyard::quantize {

struct ChannelStats {
  std::vector<double> magnitude, square;  // [channels]: sums of |x| and x²
  int64_t rows = 0;

  // x: [count, channels].
  void Add(const float* x, int64_t count, int64_t channels);
};

class ActivationStats {
 public:
  // `probe` is of a model whose weights are plain and whose experts are not stacked, and outlives
  // the object.
  explicit ActivationStats(ModelProbe& probe);

  // For ModelProbe::Perplexity. An error is kept for status().
  void Observe(const router::MoeJob& job);
  const absl::Status& status() const { return status_; }

  // Of a MoE layer: its input, and what the down projection of one of its experts multiplies; the
  // shared expert comes behind the others.
  const ChannelStats& input(int layer) const { return layers_[static_cast<size_t>(layer)].input; }
  const ChannelStats& down(int layer, int expert) const {
    return layers_[static_cast<size_t>(layer)].experts[static_cast<size_t>(expert)];
  }

 private:
  struct Layer {
    ChannelStats input;
    std::vector<ChannelStats> experts;
  };

  absl::Status ObserveMlp(const router::MoeJob& job, const std::string& gate, const std::string& up,
                          const std::vector<int32_t>& rows, ChannelStats* out);

  ModelProbe& probe_;
  const BackboneTensors backbone_;
  std::vector<Layer> layers_;
  absl::Status status_;
  AlignedBuffer input_, gate_up_, activated_;
};

}  // namespace switchyard::quantize
