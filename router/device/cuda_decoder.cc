#include "router/device/cuda_decoder.h"

#include <algorithm>
#include <cstdint>
#include <tuple>
#include <utility>

#include "router/graph/step_parts.h"
#include "services/base/check.h"
#include "services/base/clock.h"
#include "services/base/logging.h"
#include "services/base/status.h"
#include "services/model/kv_layout.h"

namespace switchyard::router {
namespace {

// How often one micro-batch's stream is looked at while the other waits for experts.
constexpr absl::Duration kLookAtStream = absl::Microseconds(50);
// How often the engine is let go on where nothing is waited for any more.
constexpr absl::Duration kStalled = absl::Milliseconds(20);

}  // namespace

CudaDecoder::CudaDecoder(const ModelSpec& spec, const DeviceBackbone& backbone,
                         Dispatcher& dispatcher)
    : spec_(spec),
      backbone_(backbone),
      api_(backbone.api()),
      dispatcher_(dispatcher),
      moe_layers_(CountMoeLayers(spec)),
      kv_groups_(KvLayoutOf(spec).groups()) {}

absl::StatusOr<std::unique_ptr<CudaDecoder>> CudaDecoder::Create(const ModelSpec& spec,
                                                                 const DeviceBackbone& backbone,
                                                                 Dispatcher& dispatcher) {
  std::unique_ptr<CudaDecoder> decoder(new CudaDecoder(spec, backbone, dispatcher));
  for (MicroBatch& part : decoder->parts_) {
    SY_ASSIGN_OR_RETURN(part.stream, backbone.NewStream());
  }
  return decoder;
}

void CudaDecoder::Start(const StepBatch& batch) {
  SY_CHECK(batch.rows() > 0 && batch_ == nullptr);
  SY_CHECK(batch.micro_batches == 1 || batch.micro_batches == 2);
  SY_CHECK(static_cast<int>(batch.block_tables.size()) == kv_groups_);
  batch_ = &batch;
  given_up_ = false;
  stalled_ = !failure().ok();
  const auto rows = static_cast<size_t>(batch.rows());
  result_.lost.assign(rows, 0);
  result_.degraded.assign(rows, 0);
  result_.waited = absl::ZeroDuration();
  const size_t traced = batch.trace_rows.size() * static_cast<size_t>(moe_layers_) *
                        static_cast<size_t>(spec_.gate.top_k);
  result_.routed_experts.resize(traced);
  result_.routed_weights.resize(traced);
  for (MicroBatch& part : parts_) part.stage = Stage::kDone;
  if (stalled_) return;
  if (!ReserveLogits(batch.logit_rows.size() * static_cast<size_t>(spec_.vocab))) return;
  const int64_t cut = CutRow(batch);
  BeginPart(0, cut, parts_[0]);
  BeginPart(cut, batch.rows(), parts_[1]);
}

bool CudaDecoder::ReserveLogits(size_t count) {
  if (count > logits_capacity_) {
    logits_capacity_ = 0;
    const size_t room = count + count / 4;
    absl::StatusOr<device::CudaBlock> block =
        device::CudaBlock::Allocate(backbone_.cuda(), SY_CUDA_PINNED, room * sizeof(float));
    if (!block.ok()) {
      Fail(Annotate(block.status(), "logits"));
      return false;
    }
    logits_ = *std::move(block);
    logits_capacity_ = room;
  }
  result_.logits = reinterpret_cast<const float*>(logits_.data());
  return true;
}

void CudaDecoder::BeginPart(int64_t begin, int64_t end, MicroBatch& part) {
  part.begin = begin;
  part.rows = end - begin;
  part.layer = part.moe_layer = 0;
  size_t logits_end = 0;
  std::tie(part.logits_begin, logits_end) = IndicesOf(batch_->logit_rows, begin, end);
  std::tie(part.trace_begin, part.trace_end) = IndicesOf(batch_->trace_rows, begin, end);
  if (part.rows == 0 || given_up_ || stalled_) return;
  part.chosen.clear();
  part.sequence_rows.clear(), part.tables.clear(), part.logit_rows.clear();
  for (int64_t row = begin; row < end; ++row) {
    if (row == begin || StartsSequence(*batch_, row)) part.sequence_rows.push_back(0);
    ++part.sequence_rows.back();
  }
  for (const auto& tables : batch_->block_tables) {
    int64_t row = begin;
    for (const int32_t rows : part.sequence_rows) {
      part.tables.push_back(tables[static_cast<size_t>(row)]);
      row += rows;
    }
  }
  for (size_t i = part.logits_begin; i < logits_end; ++i) {
    part.logit_rows.push_back(batch_->logit_rows[i] - static_cast<int32_t>(begin));
  }
  const SyCudaStep step{.rows = static_cast<int32_t>(part.rows),
                        .sequences = static_cast<int32_t>(part.sequence_rows.size()),
                        .logits = static_cast<int32_t>(part.logit_rows.size()),
                        .tokens = batch_->tokens.data() + begin,
                        .positions = batch_->positions.data() + begin,
                        .sequence_rows = part.sequence_rows.data(),
                        .tables = part.tables.data(),
                        .logit_rows = part.logit_rows.data()};
  if (!Ok(api_.begin(part.stream.get(), &step, &error_), "a step")) return;
  api_.logits_to(part.stream.get(), reinterpret_cast<float*>(logits_.data()) +
                                        part.logits_begin * static_cast<size_t>(spec_.vocab));
  part.stage = Stage::kLayers;
}

ModelRunner::Progress CudaDecoder::Advance() {
  SY_CHECK(batch_ != nullptr);
  for (bool moved = true; moved;) {
    moved = false;
    for (MicroBatch& part : parts_) moved |= Step(part);
  }
  if (stalled_ && !given_up_) return Progress::kWaiting;
  for (const MicroBatch& part : parts_) {
    if (part.stage != Stage::kDone) return Progress::kWaiting;
  }
  batch_ = nullptr;
  return Progress::kDone;
}

bool CudaDecoder::Step(MicroBatch& part) {
  switch (part.stage) {
    case Stage::kLayers:
      RunLayers(part);
      break;
    case Stage::kRouting:
      if (!Arrived(part)) return false;
      if (!given_up_ && !stalled_) Send(part);
      break;
    case Stage::kExperts:
      if (!dispatcher_.Finished(part.ticket)) return false;
      Trace(part, part.moe_layer, part.routed);
      part.stage = Stage::kLayers;
      Ok(api_.combine(part.stream.get(), part.layer, &error_), "sums of experts");
      ++part.layer, ++part.moe_layer;
      break;
    case Stage::kHead:
      if (!Arrived(part)) return false;
      if (!given_up_ && !stalled_) CountExperts(part);
      part.stage = Stage::kDone;
      break;
    case Stage::kDone:
      return false;
  }
  progress_.fetch_add(1, std::memory_order_relaxed);
  return true;
}

bool CudaDecoder::Arrived(MicroBatch& part) {
  int32_t done = 0;
  return !Ok(api_.ready(part.stream.get(), &done, &error_), "a stream") || done != 0;
}

// Up to the next one that needs experts.
void CudaDecoder::RunLayers(MicroBatch& part) {
  SyCudaBackbone* const stream = part.stream.get();
  for (; part.layer < spec_.num_layers(); ++part.layer) {
    if (!Ok(api_.attention(stream, part.layer, &error_), "attention")) return;
    if (spec_.layers[static_cast<size_t>(part.layer)].moe && backbone_.has_experts()) {
      SyCudaRouted& chosen = part.chosen.emplace_back();
      if (!Ok(api_.moe(stream, part.layer, &chosen, &error_), "experts")) return;
      continue;
    }
    if (spec_.layers[static_cast<size_t>(part.layer)].moe) {
      if (Ok(api_.route(stream, part.layer, &part.routed, &error_), "a gate") &&
          Ok(api_.shared(stream, part.layer, &error_), "shared experts")) {
        part.stage = Stage::kRouting;
      }
      return;
    }
    if (!Ok(api_.dense(stream, part.layer, &error_), "a feed-forward")) return;
  }
  const float* logits = nullptr;
  if (Ok(api_.head(stream, &logits, &error_), "logits")) part.stage = Stage::kHead;
}

void CudaDecoder::Send(MicroBatch& part) {
  part.ticket = dispatcher_.Start({.layer = part.layer,
                                   .tokens = part.rows,
                                   .top_k = spec_.gate.top_k,
                                   .x = {part.routed.x, DType::kBF16, spec_.hidden},
                                   .experts = part.routed.ids,
                                   .weights = part.routed.weights,
                                   .out = part.routed.sums,
                                   .lost = result_.lost.data() + part.begin,
                                   .priority = batch_->priority,
                                   .deadline = batch_->deadline});
  part.stage = Stage::kExperts;
}

void CudaDecoder::Trace(const MicroBatch& part, int moe_layer, const SyCudaRouted& routed) {
  const int64_t width = spec_.gate.top_k;
  for (size_t i = part.trace_begin; i < part.trace_end; ++i) {
    const int64_t row = batch_->trace_rows[i] - part.begin;
    const int64_t to = (static_cast<int64_t>(i) * moe_layers_ + moe_layer) * width;
    std::copy_n(routed.ids + row * width, width, result_.routed_experts.data() + to);
    std::copy_n(routed.weights + row * width, width, result_.routed_weights.data() + to);
  }
}

// Of a step whose experts were computed on the device.
void CudaDecoder::CountExperts(const MicroBatch& part) {
  const size_t pairs = static_cast<size_t>(part.rows) * static_cast<size_t>(spec_.gate.top_k);
  size_t moe_layer = 0;
  for (int layer = 0; moe_layer < part.chosen.size(); ++layer) {
    if (!spec_.layers[static_cast<size_t>(layer)].moe) continue;
    const SyCudaRouted& chosen = part.chosen[moe_layer];
    Trace(part, static_cast<int>(moe_layer), chosen);
    dispatcher_.CountComputed(layer, {chosen.ids, pairs});
    ++moe_layer;
  }
}

void CudaDecoder::Wait(absl::Time until) {
  if (stalled_) return dispatcher_.Wait(std::min(until, SteadyNow() + kStalled));
  MicroBatch* computes = nullptr;
  bool out = false;
  for (MicroBatch& part : parts_) {
    out |= part.stage == Stage::kExperts;
    if (part.stage == Stage::kRouting || part.stage == Stage::kHead) computes = &part;
  }
  if (out && computes != nullptr) {
    return dispatcher_.Wait(std::min(until, SteadyNow() + kLookAtStream));
  }
  if (out) {
    const absl::Time began = SteadyNow();
    dispatcher_.Wait(until);
    result_.waited += SteadyNow() - began;
  } else if (computes != nullptr) {
    Ok(api_.wait_routed(computes->stream.get(), &error_), "a stream");
  }
}

void CudaDecoder::Abandon() {
  SY_CHECK(batch_ != nullptr);
  given_up_ = true;
  EndParts();
  std::fill(result_.lost.begin(), result_.lost.end(), uint8_t{1});
}

void CudaDecoder::EndParts() {
  for (MicroBatch& part : parts_) {
    if (part.stage == Stage::kExperts) dispatcher_.Abandon(part.ticket);
    // What still runs writes into blocks that are going to be others', whose rows another stream
    // may compute.
    const bool ran = std::exchange(part.stage, Stage::kDone) != Stage::kDone;
    if (ran && !stalled_) Ok(api_.wait(part.stream.get(), &error_), "a stream");
  }
}

void CudaDecoder::CopyBlock(int32_t from, int32_t to) {
  if (failure().ok()) {
    Ok(api_.copy_block(parts_[0].stream.get(), from, to, &error_), "a copy of a block");
  }
}

bool CudaDecoder::Ok(int code, std::string_view what) {
  if (code == SY_CUDA_OK) return true;
  Fail(device::ToStatus(code, error_, what));
  return false;
}

void CudaDecoder::Fail(const absl::Status& why) {
  log::Error("{}: {}", backbone_.cuda()->name(), ToStd(why.message()));
  if (absl::IsResourceExhausted(why)) {
    if (batch_ != nullptr) Abandon();
    return;
  }
  stalled_ = true;
  EndParts();
  absl::MutexLock lock(&mutex_);
  failure_.Update(absl::DataLossError(
      fmt::format("{} is lost: {}", backbone_.cuda()->name(), ToStd(why.message()))));
}

absl::Status CudaDecoder::failure() const {
  absl::MutexLock lock(&mutex_);
  return failure_;
}

}  // namespace switchyard::router
