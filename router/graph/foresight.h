// Which experts the next MoE layer will probably want, said to the dispatcher while the rows of
// this one are out: those that the next layer's gate chooses of the residual as it stands, which a
// layer changes little. About half of them are used (docs/operating/running.md); to name more costs
// more reading than it spares. Hints change no result.
//
// Nothing is computed where nobody wants to be told. Driven by the engine thread.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "router/dispatch/dispatcher.h"
#include "router/graph/context.h"
#include "router/graph/weights.h"

namespace switchyard::router {

class Foresight {
 public:
  Foresight(const GraphContext& context, const RouterWeights& weights, Dispatcher& dispatcher);

  // What was said in an earlier step may be said again.
  void BeginStep() { ++step_; }
  // Rows of `layer` are out; residual [rows, hidden] is what they were made of.
  void Tell(int layer, int64_t rows, const float* residual);

 private:
  // Adds to wanted_ what the gate gives each of its choices.
  void Choose(const LayerWeights& next, int64_t rows, const float* residual);

  const GraphContext& context_;
  const RouterWeights& weights_;
  Dispatcher& dispatcher_;
  const int64_t hidden_, experts_;
  std::vector<int> next_;       // [layers]: the next MoE layer, or -1
  std::vector<uint64_t> told_;  // [layers, experts]: the step in which it was said last
  uint64_t step_ = 1;
  AlignedBuffer normed_, logits_, chosen_, ids_;
  std::vector<float> wanted_;   // [experts]
  std::vector<int32_t> names_;  // what is said
};

}  // namespace switchyard::router
