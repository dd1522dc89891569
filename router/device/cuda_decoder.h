// The forward pass with everything but the routed experts on a CUDA device: what Decoder is on a
// CPU, over the same dispatcher. Each of two micro-batches has a stream of its own:
//
//   kLayers ──MoE layer: rows and choice come to the host──▶ kRouting ──▶ kExperts ──▶ kLayers
//      └──after the last──▶ kHead ──logits are on the host──▶ kDone
//
// Experts that lie on the device, too, are computed in the stream, with the bits that their frames
// would have: then a step is one row of launches, and nothing waits for the host before kHead.
//
// A row's bits depend on its own sequence alone, as on a CPU, but they are the device's.
// Activations and KV cache are bf16. The gate's own choice alone: no routing policies, no replaced
// experts.
//
// A step that finds no memory on the device loses its rows. Where the device is lost, failure()
// says so, and this step and all others wait until they are abandoned: whoever asked can be served
// by another router, but only if this one does not answer that it failed.
//
// Driven by the engine thread alone, but for failure and progress.
#pragma once

#include <atomic>
#include <memory>
#include <string_view>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "router/device/device_backbone.h"
#include "router/dispatch/dispatcher.h"
#include "router/graph/model_runner.h"

namespace switchyard::router {

class CudaDecoder : public ModelRunner {
 public:
  // All outlive the decoder. The backbone has its cache.
  static absl::StatusOr<std::unique_ptr<CudaDecoder>> Create(const ModelSpec& spec,
                                                             const DeviceBackbone& backbone,
                                                             Dispatcher& dispatcher);

  const ModelSpec& spec() const override { return spec_; }
  void Start(const StepBatch& batch) override;
  Progress Advance() override;
  void Wait(absl::Time until) override;
  void Abandon() override;
  const StepResult& result() const override { return result_; }
  void CopyBlock(int32_t from, int32_t to) override;
  uint64_t progress() const override { return progress_.load(std::memory_order_relaxed); }

  // Why nothing can be computed any more; OK before. Any thread may ask.
  absl::Status failure() const;

 private:
  enum class Stage { kLayers, kRouting, kExperts, kHead, kDone };

  struct MicroBatch {
    CudaStream stream;
    int64_t begin = 0, rows = 0;
    size_t logits_begin = 0, trace_begin = 0, trace_end = 0;
    Stage stage = Stage::kDone;
    int layer = 0;
    int moe_layer = 0;  // how many MoE layers came before
    SyCudaRouted routed = {};
    std::vector<SyCudaRouted> chosen;  // [MoE layers], of experts on the device
    MoeTicket ticket = 0;
    // Of the step's call, kept for their memory.
    std::vector<int32_t> sequence_rows, logit_rows;
    std::vector<const int32_t*> tables;  // [groups][sequences]
  };

  CudaDecoder(const ModelSpec& spec, const DeviceBackbone& backbone, Dispatcher& dispatcher);

  void BeginPart(int64_t begin, int64_t end, MicroBatch& part);
  // Takes a micro-batch one stage further; false if it has to wait.
  bool Step(MicroBatch& part);
  bool Arrived(MicroBatch& part);
  void RunLayers(MicroBatch& part);
  void Send(MicroBatch& part);
  void Trace(const MicroBatch& part, int moe_layer, const SyCudaRouted& routed);
  void CountExperts(const MicroBatch& part);
  bool ReserveLogits(size_t count);
  // Whether a call went well; otherwise the step's rows are lost, and maybe the device.
  bool Ok(int code, std::string_view what);
  void Fail(const absl::Status& why);
  void EndParts();

  const ModelSpec& spec_;
  const DeviceBackbone& backbone_;
  const SyCudaBackboneApi& api_;
  Dispatcher& dispatcher_;
  const int moe_layers_, kv_groups_;
  MicroBatch parts_[2];
  SyCudaError error_ = {};
  device::CudaBlock logits_;  // pinned
  size_t logits_capacity_ = 0;
  const StepBatch* batch_ = nullptr;
  bool given_up_ = false;  // the step
  bool stalled_ = false;   // the step, for ever: the device is lost
  StepResult result_;
  std::atomic<uint64_t> progress_ = 0;
  mutable absl::Mutex mutex_;
  absl::Status failure_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace switchyard::router
