// A model's forward pass in one process, without engine and wire: the real decoder over the direct
// dispatcher. Sequences take KV blocks in scattered order, from storage that starts out full of
// NaN, so that a wrong block or a masked slot that is read shows.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "router/graph/decoder.h"
#include "services/checkpoint/tensor_source.h"
#include "tests/support/direct_dispatcher.h"

namespace switchyard::test {

// Spec and weights of a checkpoint; dies with the error where it cannot be loaded.
struct LoadedModel {
  explicit LoadedModel(const std::string& directory);

  ModelSpec spec;
  std::unique_ptr<checkpoint::TensorSource> source;
  router::RouterWeights weights;
  DirectExperts experts;
};

// The widest instruction set of each arithmetic class that this CPU has.
std::vector<kernels::Isa> WidestOfEachClass(DType dtype);

struct HarnessOptions {
  DType dtype = DType::kF32;
  std::optional<DType> kv_dtype;  // none: dtype
  kernels::Isa isa = kernels::SupportedIsas().back();
  int threads = 1;
  int micro_batches = 1;
  int polls_until_done = 0;  // see DirectDispatcher
  int64_t kv_blocks = 512;
  router::RoutingOptions routing;
  router::LostExperts lost_experts = router::LostExperts::kFail;
  router::Dispatcher* instead = nullptr;  // of the direct one; outlives the harness
  // Of another device than the CPU, with as many blocks; null: the decoder.
  std::function<std::unique_ptr<router::ModelRunner>(router::Dispatcher&)> make_runner;
};

class DecoderHarness {
 public:
  struct Sequence {
    int32_t length = 0;
    std::vector<std::vector<int32_t>> blocks;  // [groups]
  };
  // The next tokens of a sequence. wanted: logits of all of its rows, of the last, or of none.
  struct Chunk {
    enum class Logits { kAll, kLast, kNone };
    Sequence* sequence = nullptr;
    std::span<const int32_t> tokens;
    Logits wanted = Logits::kLast;
    bool trace = false;
  };

  DecoderHarness(const LoadedModel& model, const HarnessOptions& options);
  // The same with other weights of the router, to break them on purpose.
  DecoderHarness(const LoadedModel& model, const router::RouterWeights& weights,
                 const HarnessOptions& options);

  // One step; the result is valid until the next.
  const router::StepResult& Step(std::span<const Chunk> chunks);
  const router::StepResult& Step(const Chunk& chunk) { return Step(std::span(&chunk, 1)); }

  const ModelSpec& spec() const { return model_.spec; }
  DirectDispatcher& dispatcher() { return dispatcher_; }
  router::ModelRunner& runner() { return *runner_; }
  // Where it is the CPU's.
  router::Decoder& decoder() { return dynamic_cast<router::Decoder&>(*runner_); }
  // How often the last step had to wait for the dispatcher.
  int waits() const { return waits_; }

 private:
  void Add(const Chunk& chunk);
  std::unique_ptr<router::ModelRunner> MakeRunner(const LoadedModel& model,
                                                  const router::RouterWeights& weights,
                                                  const HarnessOptions& options);

  const LoadedModel& model_;
  kernels::ThreadPool pool_;
  kernels::Compute compute_;
  router::KvStorage kv_;
  DirectDispatcher dispatcher_;
  const std::unique_ptr<router::ModelRunner> runner_;
  const int micro_batches_;
  router::StepBatch batch_;
  int64_t blocks_taken_ = 0;
  int waits_ = 0;
};

// The first of the largest.
int32_t ArgMax(std::span<const float> x);

}  // namespace switchyard::test
