#include "router/forward_pass.h"

#include <algorithm>
#include <functional>
#include <utility>

#include "services/base/cores.h"
#include "services/base/logging.h"
#include "services/base/memory.h"
#include "services/base/status.h"
#include "services/checkpoint/progress.h"
#include "services/checkpoint/weight_check.h"
#include "services/config/units.h"
#include "services/model/memory_plan.h"
#include "services/model/tensor_names.h"

namespace switchyard::router {
namespace {

// Of a device's free memory that nobody plans with: what its allocations round up to.
constexpr uint64_t kDeviceSlack = uint64_t{64} << 20;

WeightBytes BackboneBytesOf(const OpenedModel& model) {
  return BackboneBytes(model.spec, StoredIn(model));
}

absl::Status CheckBackbone(const OpenedModel& model) {
  std::vector<checkpoint::TensorRange> ranges;
  for (const TensorRef& tensor : AllTensors(BackboneTensorsOf(model.spec))) {
    ranges.push_back({.name = tensor.name});
  }
  checkpoint::ConsoleProgress progress("Reading the router's weights");
  return checkpoint::CheckWeights(*model.source, ranges, std::ref(progress));
}

std::string Bytes(uint64_t bytes) { return config::FormatBytes(static_cast<int64_t>(bytes)); }

KvRequest KvRequestOf(const RouterOptions& options, uint64_t weights, uint64_t available) {
  return {.kv_bytes = options.kv_bytes,
          .max_model_len = options.max_model_len,
          .weight_bytes = weights,
          .available_bytes = available};
}

absl::StatusOr<KvPlan> PlanMemory(const RouterOptions& options, const ModelSpec& spec,
                                  const KvRequest& request) {
  const DType kv_dtype = KvDType(options);
  SY_ASSIGN_OR_RETURN(const KvPlan plan, PlanKv(spec, kv_dtype, request));
  const uint64_t all = KvBytesPerToken(spec, kv_dtype);
  const uint64_t kept = KvBytesPerKeptToken(spec, kv_dtype);
  log::Info(
      "{} of weights, {} of KV cache (--kv-memory changes it): {} tokens of {} in {}{}, up to {} a "
      "sequence; {} of "
      "memory available{}",
      Bytes(request.weight_bytes), config::FormatBytes(plan.bytes), plan.tokens, Bytes(all),
      Name(kv_dtype),
      kept == all ? "" : fmt::format(" ({} behind the sliding windows)", Bytes(kept)),
      plan.max_model_len, Bytes(request.available_bytes),
      options.cuda == nullptr ? "" : " on " + options.cuda->name());
  return plan;
}

// What a device does not compute yet. Errors name the flag.
absl::Status CheckDevice(const RouterOptions& options) {
  if (options.cuda == nullptr) return absl::OkStatus();
  if (options.dtype != DType::kBF16) {
    return UsageError("--dtype {}: a GPU computes in bfloat16; leave it out, or use {} cpu",
                      Name(options.dtype), options.device_flag);
  }
  if (KvDType(options) != DType::kBF16) {
    return UsageError(
        "--kv-dtype: on a GPU keys and values are kept in bfloat16; leave it out, or use {} cpu",
        options.device_flag);
  }
  if (!options.routing.gate()) {
    return UsageError(
        "--routing-policy {}: on a GPU the gate's own choice stands; leave it out, or use {} "
        "cpu",
        options.routing.Name(), options.device_flag);
  }
  if (options.lost_experts != LostExperts::kFail) {
    return UsageError(
        "--lost-experts {}: on a GPU no expert replaces another; leave it out, or use {} cpu",
        Name(options.lost_experts), options.device_flag);
  }
  return absl::OkStatus();
}

int64_t PositionsOf(const RouterOptions& options, const ModelSpec& spec) {
  const int longest = options.max_model_len;
  return longest > 0 ? std::min(longest, spec.max_position) : spec.max_position;
}

// Of a device, beside weights and KV.
absl::StatusOr<uint64_t> StepBytesOf(const RouterOptions& options, const ModelSpec& spec,
                                     const SyCudaFfnSpec* experts) {
  const int64_t logits = int64_t{options.max_running} * (1 + options.speculate_ngram);
  SY_ASSIGN_OR_RETURN(const uint64_t bytes,
                      DeviceBackbone::StepBytes(*options.cuda, spec, PositionsOf(options, spec),
                                                options.max_batch_tokens, logits, experts));
  return bytes + kDeviceSlack;
}

}  // namespace

StoredTensorOf StoredIn(const OpenedModel& model) {
  return [&model](std::string_view name) {
    const checkpoint::TensorInfo* tensor = model.source->Find(name);
    return tensor == nullptr ? StoredTensor(model.spec.weight_dtype)
                             : StoredTensor(tensor->dtype, tensor->scale_bytes);
  };
}

DType KvDType(const RouterOptions& options) { return options.kv_dtype.value_or(options.dtype); }

absl::Status ForwardPass::Check(const RouterOptions& options, const OpenedModel& model,
                                uint64_t other_weight_bytes) {
  SY_RETURN_IF_ERROR(CheckRouting(options.routing, model.spec));
  SY_RETURN_IF_ERROR(CheckDevice(options));
  const uint64_t backbone = BackboneBytesOf(model).total();
  if (options.cuda != nullptr) {
    SY_ASSIGN_OR_RETURN(const uint64_t free, options.cuda->FreeBytes());
    return PlanKv(model.spec, KvDType(options), KvRequestOf(options, backbone, free)).status();
  }
  return PlanKv(model.spec, KvDType(options),
                KvRequestOf(options, backbone + other_weight_bytes, AvailableMemoryBytes()))
      .status();
}

absl::StatusOr<DeviceShare> ForwardPass::ShareOf(const RouterOptions& options,
                                                 const OpenedModel& model, uint64_t free) {
  // Their form does not matter for what lies between their products.
  const SyCudaFfnSpec experts_there = {.hidden = model.spec.hidden,
                                       .intermediate = model.spec.experts.intermediate};
  SY_ASSIGN_OR_RETURN(const uint64_t steps, StepBytesOf(options, model.spec, &experts_there));
  const uint64_t weights = BackboneBytesOf(model).total();
  // Tiles are padded.
  const uint64_t fixed = weights + weights / 32 + steps;
  const uint64_t rest = free - std::min(free, fixed);
  uint64_t kv = static_cast<uint64_t>(options.kv_bytes);
  uint64_t experts = 0;
  for (const int64_t bytes : ExpertBytesByLayer(model.spec, StoredIn(model))) {
    experts += static_cast<uint64_t>(bytes) * static_cast<uint64_t>(model.spec.experts.count);
  }
  // Experts that do not all fit come and go: a sequence that finds no room in the cache waits.
  if (kv == 0) kv = experts < rest / 2 ? (rest - experts) / 2 : rest / 4;
  return DeviceShare{.bytes = fixed + kv, .kv_bytes = kv};
}

absl::StatusOr<std::unique_ptr<ForwardPass>> ForwardPass::Load(const RouterOptions& options,
                                                               const RouterShared& shared,
                                                               const OpenedModel& model) {
  SY_RETURN_IF_ERROR(CheckRouting(options.routing, model.spec));
  SY_RETURN_IF_ERROR(CheckDevice(options));
  if (options.routing.depends_on_batch()) {
    log::Warning("--routing-policy {}: tokens depend on what else is computed at the time",
                 options.routing.Name());
  }
  std::unique_ptr<ForwardPass> pass(new ForwardPass(options, model));
  if (options.cuda == nullptr) SY_RETURN_IF_ERROR(pass->PlanHost(shared.other_weight_bytes));
  SY_ASSIGN_OR_RETURN(pass->weights_, RouterWeights::Load(model.spec, *model.source));
  if (options.weight_check) SY_RETURN_IF_ERROR(CheckBackbone(model));
  SY_RETURN_IF_ERROR(pass->LoadCompute(shared));
  if (options.cuda != nullptr) {
    SY_RETURN_IF_ERROR(pass->LoadDevice(shared.device_experts));
    return pass;
  }
  SY_ASSIGN_OR_RETURN(KvStorage kv,
                      KvStorage::Create(model.spec, KvDType(options), pass->plan_.blocks));
  pass->kv_ = std::make_unique<KvStorage>(std::move(kv));
  return pass;
}

absl::Status ForwardPass::PlanHost(uint64_t other_weight_bytes) {
  const uint64_t weights = BackboneBytesOf(model_).total() + other_weight_bytes;
  SY_ASSIGN_OR_RETURN(plan_, PlanMemory(options_, model_.spec,
                                        KvRequestOf(options_, weights, AvailableMemoryBytes())));
  return absl::OkStatus();
}

absl::Status ForwardPass::LoadCompute(const RouterShared& shared) {
  SY_ASSIGN_OR_RETURN(const kernels::Isa isa, kernels::ChooseIsa(options_.isa));
  kernels::ThreadPool* pool = shared.pool;
  if (pool == nullptr) {
    const int threads = options_.threads > 0 ? options_.threads : UsableCores();
    own_pool_ = std::make_unique<kernels::ThreadPool>(threads);
    pool = own_pool_.get();
  }
  compute_ = std::make_unique<kernels::Compute>(isa, *pool);
  const ModelSpec& spec = model_.spec;
  if (spec.skipped_layers > 0) {
    log::Info("{} layers beyond num_hidden_layers (multi-token prediction) are skipped",
              spec.skipped_layers);
  }
  log::Info("{}: {} layers, {} experts a MoE layer; {} on {}, {} threads", spec.architecture,
            spec.num_layers(), spec.experts.count, Name(options_.dtype),
            options_.cuda == nullptr ? std::string(kernels::Name(isa)) : options_.cuda->name(),
            pool->threads());
  return absl::OkStatus();
}

// First the weights: what they leave is for steps and KV.
absl::Status ForwardPass::LoadDevice(const device::DeviceExperts* experts) {
  const std::shared_ptr<const device::Cuda>& cuda = options_.cuda;
  SY_ASSIGN_OR_RETURN(const uint64_t before, cuda->FreeBytes());
  absl::StatusOr<std::unique_ptr<DeviceBackbone>> backbone = DeviceBackbone::Load(
      cuda, model_.spec, weights_, PositionsOf(options_, model_.spec), experts);
  if (absl::IsInvalidArgument(backbone.status())) {
    return Annotate(backbone.status(), options_.device_flag + " cpu computes this model");
  }
  SY_ASSIGN_OR_RETURN(backbone_, std::move(backbone));
  SY_ASSIGN_OR_RETURN(const uint64_t after, cuda->FreeBytes());
  SY_ASSIGN_OR_RETURN(
      const uint64_t steps,
      StepBytesOf(options_, model_.spec, experts == nullptr ? nullptr : &experts->ffn));
  const uint64_t weights = before - std::min(before, after);
  if (after <= steps) {
    return ResourceExhausted(
        "{}: {} are free beside the router's weights ({}), steps of up to {} rows take {}; give "
        "less --max-batch-tokens",
        cuda->name(), Bytes(after), Bytes(weights), options_.max_batch_tokens, Bytes(steps));
  }
  SY_ASSIGN_OR_RETURN(
      plan_, PlanMemory(options_, model_.spec, KvRequestOf(options_, weights, before - steps)));
  return backbone_->AllocateCache(plan_.blocks);
}

absl::Status ForwardPass::MakeRunner(Dispatcher& dispatcher) {
  if (backbone_ != nullptr) {
    SY_ASSIGN_OR_RETURN(cuda_, CudaDecoder::Create(model_.spec, *backbone_, dispatcher));
    return absl::OkStatus();
  }
  const DecoderOptions decoder{.dtype = options_.dtype,
                               .max_positions = plan_.max_model_len,
                               .routing = options_.routing,
                               .lost_experts = options_.lost_experts};
  SY_RETURN_IF_ERROR(decoder.Validate());
  cpu_ = std::make_unique<Decoder>(decoder, model_.spec, weights_, *compute_, *kv_, dispatcher);
  return absl::OkStatus();
}

ModelRunner& ForwardPass::runner() const {
  if (cuda_ != nullptr) return *cuda_;
  return *cpu_;
}

std::string ForwardPass::arithmetic() const {
  if (options_.cuda != nullptr) return options_.cuda->about().arithmetic;
  return std::string(kernels::ArithmeticClass(options_.dtype, compute_->isa()));
}

int ForwardPass::routing_width() const {
  return cpu_ == nullptr ? model_.spec.gate.top_k : cpu_->routing_width();
}

absl::Status ForwardPass::failure() const {
  return cuda_ == nullptr ? absl::OkStatus() : cuda_->failure();
}

}  // namespace switchyard::router
