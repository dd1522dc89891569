// An expert worker: a pure function with weights. Rows in, rows out; it knows neither sequences nor
// users. The same object serves a LocalLink of this process (embedded) or routers over gRPC.
//
// Thread-safe but for Compute, which one thread at a time may call: the engine thread through its
// LocalLink, or the serving thread once Start was called.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "expert-worker/device/device_memory.h"
#include "expert-worker/store/loader.h"
#include "expert-worker/store/tiers.h"
#include "services/checkpoint/tensor_source.h"
#include "services/device/device_experts.h"
#include "services/expertwire/expert_link.h"
#include "services/expertwire/handshake.h"
#include "services/expertwire/histogram.h"
#include "services/kernels/kernels.h"
#include "services/model/spec.h"

namespace grpc {
class ServerBuilder;
}  // namespace grpc

namespace switchyard::worker {

struct WorkerOptions {
  std::string worker_id = "expert-worker";  // names this side in refusals and logs
  std::string experts;  // held from the start: "0-63,70", or "i/n": part i of n; "none"; empty: all
  DType dtype = DType::kBF16;  // of activations and wire rows: kBF16 or kF32
  std::string isa = "auto";    // kernels::ChooseIsa
  int threads = 1;             // of its own pool; unused with a shared one
  // Where experts are computed, in bf16; null: on this CPU.
  std::shared_ptr<const device::Cuda> cuda;
  uint64_t pinned_bytes = 0;  // of the host, for experts on their way to a device
  bool allow_mixed_numerics = false;
  std::string node, zone;  // where it runs, for whoever places experts
  // That weights may take, of a device where there is one; what is held beyond is read as it is
  // used.
  uint64_t memory_bytes = 0;
  uint64_t load_bytes_per_s = 0;  // of experts that come later, unless a router waits; 0: unbounded
  bool check_weights = true;      // of experts that come later, for NaN and infinity
  bool shared_memory = true;      // with the other side of the wire, where it runs on this host
  expertwire::CreditGrant grant;  // to each router
  int max_routers = 64;           // more are refused
  size_t max_frame_bytes = 64u << 20;
  size_t merge_bytes = 64u << 20;  // scratch memory that one merged computation may take
  absl::Duration busy_poll = absl::Milliseconds(1);  // polls for so long after work, then sleeps
};

struct WorkerCounters {
  uint64_t parts = 0;                  // taken
  uint64_t rows = 0;                   // (row, expert) pairs computed
  uint64_t computations = 0;           // grouped computations
  uint64_t parts_merged = 0;           // parts that shared theirs with another
  uint64_t cancelled = 0;              // parts dropped before they were computed
  std::array<uint64_t, 6> segments{};  // answered, by expertwire::pb::SegmentStatus
  uint64_t waiting = 0;                // parts, now
  uint64_t routers = 0;                // connected, now
  uint64_t streams_broken = 0;         // by undecodable frames or overdrawn credits
  uint64_t refused = 0;                // streams
  uint64_t unknown_cancels = 0;        // of calls that are not open
  // Streams that ended with an error of the router's or for want of room, by absl::StatusCode.
  std::array<uint64_t, 17> ended_by_code{};
  LoaderCounters loads;
  TierCounters tiers;
  std::optional<DeviceMemoryCounters> device;
  uint64_t epoch = 0, assigned_epoch = 0;  // as in expertwire::pb::Holds
  uint64_t to_load = 0;                    // experts, now
  uint64_t memory_bytes = 0;               // WorkerOptions
  expertwire::HistogramCounts batch_rows;  // pairs of a computation
  expertwire::HistogramCounts compute_us;  // time of a computation
  expertwire::HistogramCounts queue_us;    // time of a part before its computation
};

class Worker : public expertwire::CallHandler {
 public:
  // Maps the bytes of its own experts out of `source` and, until it is assigned others, no others.
  // With `pool` (embedded)
  // computes on it, otherwise on threads of its own. `fingerprint` is that of the checkpoint.
  static absl::StatusOr<std::unique_ptr<Worker>> Create(
      const ModelSpec& spec, const std::string& fingerprint,
      std::shared_ptr<checkpoint::TensorSource> source, const WorkerOptions& options,
      kernels::ThreadPool* pool = nullptr);
  ~Worker() override;

  // Over gRPC: Register adds Dispatch and Describe to a server that is being built; Start, once it
  // is built, starts the thread that computes. Call each once.
  void Register(grpc::ServerBuilder& builder);
  void Start();

  // Tells all routers to send no more; what is open is finished.
  void BeginDrain();
  // Whether no call is open and all answers are written.
  bool Drained() const;
  // Ends the serving threads, after the server's Shutdown; the destructor does it too. Until then
  // they must run, as Shutdown waits for the streams to end.
  void Stop();

  WorkerCounters counters() const;
  const expertwire::NumericsClass& numerics() const;
  uint64_t mapped_bytes() const;  // of weights that are held
  // Lets go from memory what was read beyond its bounds; brings to a device what it has room for.
  // RESOURCE_EXHAUSTED where that is less than was said. `progress` may be null.
  absl::Status SettleMemory(
      const std::function<void(uint64_t done, uint64_t total)>& progress = nullptr);
  // After it: where the experts lie on the device, and stay. FAILED_PRECONDITION unless all of the
  // model's do, at once.
  absl::StatusOr<device::DeviceExperts> PinExperts();
  // Of experts that are held, in the memory they are computed from.
  uint64_t held_bytes() const;
  // Why nothing can be computed any more: DATA_LOSS of a device that is lost; else OK.
  absl::Status failure() const;
  int64_t experts_held() const;  // over all layers

  expertwire::pb::Hello hello() const override;
  bool draining() const override;
  expertwire::pb::DescribeResponse Describe() const override;
  void Accept(expertwire::Call part, std::shared_ptr<expertwire::AnswerSink> sink) override;
  Dropped Cancel(const expertwire::AnswerSink* sink, uint64_t call_id, uint32_t attempt) override;
  void Forget(const expertwire::AnswerSink* sink) override;
  void OnRouter(const expertwire::AnswerSink* sink) override;
  void OnAssign(const expertwire::pb::Assign& assign) override;
  void OnMapAck(const expertwire::AnswerSink* sink, uint64_t epoch) override;
  void OnPrefetch(const expertwire::pb::Prefetch& prefetch) override;
  uint64_t holds_version() const override;
  expertwire::pb::Holds holds() const override;
  bool Compute() override;

 private:
  struct Lane;
  struct Parts;
  explicit Worker(std::unique_ptr<Parts> parts);

  std::unique_ptr<Parts> parts_;
};

}  // namespace switchyard::worker
