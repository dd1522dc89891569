#include "router/graph/decoder.h"

#include <algorithm>
#include <tuple>

#include "router/graph/step_parts.h"
#include "services/base/check.h"
#include "services/base/clock.h"
#include "services/base/status.h"

namespace switchyard::router {

absl::Status DecoderOptions::Validate() const {
  if (dtype != DType::kF32 && dtype != DType::kBF16) {
    return InvalidArgument("dtype is {}; supported: float32, bfloat16", Name(dtype));
  }
  if (max_positions < 0) {
    return InvalidArgument("max_positions is {}; it must not be negative", max_positions);
  }
  return absl::OkStatus();
}

Decoder::Decoder(const DecoderOptions& options, const ModelSpec& spec, const RouterWeights& weights,
                 const kernels::Compute& compute, KvStorage& kv, Dispatcher& dispatcher)
    : spec_(spec),
      weights_(weights),
      dispatcher_(dispatcher),
      moe_layers_(CountMoeLayers(spec)),
      rope_(spec.attention.rope,
            options.max_positions > 0 ? options.max_positions : spec.max_position),
      context_{.spec = spec, .compute = compute, .rope = rope_, .kv = kv, .dtype = options.dtype},
      attention_(MakeAttention(context_)),
      routing_(options.routing.gate() ? nullptr
                                      : std::make_unique<RoutingPolicy>(options.routing, spec)),
      moe_(context_, dispatcher, routing_.get(), options.lost_experts),
      foresight_(context_, weights, dispatcher),
      dense_(context_),
      head_(context_) {
  SY_CHECK(options.Validate().ok());
}

void Decoder::Start(const StepBatch& batch) {
  SY_CHECK(batch.rows() > 0 && (batch_ == nullptr));
  batch_ = &batch;
  const size_t rows = batch.tokens.size();
  SY_CHECK(batch.positions.size() == rows &&
           static_cast<int>(batch.block_tables.size()) == context_.kv.groups());
  for (const auto& tables : batch.block_tables) SY_CHECK(tables.size() == rows);
  SY_CHECK(batch.micro_batches == 1 || batch.micro_batches == 2);
  rope_.Reserve(*std::max_element(batch.positions.begin(), batch.positions.end()) + 1);

  foresight_.BeginStep();

  result_.logits = Floats(logits_, static_cast<int64_t>(batch.logit_rows.size()) * spec_.vocab);
  result_.lost.assign(rows, 0);
  result_.degraded.assign(rows, 0);
  result_.waited = absl::ZeroDuration();
  const size_t traced = batch.trace_rows.size() * static_cast<size_t>(moe_layers_) *
                        static_cast<size_t>(moe_.width());
  result_.routed_experts.resize(traced);
  result_.routed_weights.resize(traced);

  const int64_t cut = CutRow(batch);
  BeginPart(0, cut, parts_[0]);
  BeginPart(cut, batch.rows(), parts_[1]);
}

void Decoder::BeginPart(int64_t begin, int64_t end, MicroBatch& part) {
  part.begin = begin;
  part.rows = end - begin;
  part.layer = part.moe_layer = 0;
  std::tie(part.logits_begin, part.logits_end) = IndicesOf(batch_->logit_rows, begin, end);
  std::tie(part.trace_begin, part.trace_end) = IndicesOf(batch_->trace_rows, begin, end);
  part.stage = part.rows == 0 ? Stage::kDone : Stage::kAttention;
  if (part.rows > 0) Embed(part);
}

void Decoder::Embed(MicroBatch& part) {
  const int64_t hidden = spec_.hidden;
  const WeightView& table = weights_.embedding;
  float* residual = Floats(part.residual, part.rows * hidden);
  const int32_t* tokens = batch_->tokens.data() + part.begin;
  ForRows(context_.compute, part.rows, hidden, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      SY_CHECK(tokens[r] >= 0 && tokens[r] < spec_.vocab);
      kernels::RowToFloat(table, tokens[r], residual + r * hidden);
    }
  });
}

ModelRunner::Progress Decoder::Advance() {
  SY_CHECK(batch_ != nullptr);
  for (bool moved = true; moved;) {
    moved = false;
    for (MicroBatch& part : parts_) moved |= Step(part);
  }
  for (const MicroBatch& part : parts_) {
    if (part.stage != Stage::kDone) return Progress::kWaiting;
  }
  batch_ = nullptr;
  return Progress::kDone;
}

void Decoder::Wait(absl::Time until) {
  const absl::Time began = SteadyNow();
  dispatcher_.Wait(until);
  result_.waited += SteadyNow() - began;
}

void Decoder::Abandon() {
  SY_CHECK(batch_ != nullptr);
  for (MicroBatch& part : parts_) {
    const bool out = part.stage == Stage::kShared || part.stage == Stage::kExperts;
    if (out) dispatcher_.Abandon(part.moe.ticket);
    part.stage = Stage::kDone;
  }
  std::fill(result_.lost.begin(), result_.lost.end(), uint8_t{1});
}

bool Decoder::Step(MicroBatch& part) {
  switch (part.stage) {
    case Stage::kAttention:
      RunAttention(part);
      return true;
    case Stage::kShared:
      moe_.RunShared(LayerOf(part), part.rows, part.moe);
      part.stage = Stage::kExperts;
      return true;
    case Stage::kExperts:
      if (!dispatcher_.Finished(part.moe.ticket)) return false;
      if (moe_.SendAgain(part.layer, LayerOf(part), part.rows, TermsOf(part), part.moe)) {
        return true;
      }
      Trace(part);
      moe_.Finish(LayerOf(part), part.rows, part.moe, part.residual.as<float>());
      ++part.moe_layer;
      NextLayer(part);
      return true;
    case Stage::kHead:
      head_.Run(weights_, part.residual.as<float>(),
                std::span(batch_->logit_rows)
                    .subspan(part.logits_begin, part.logits_end - part.logits_begin),
                static_cast<int32_t>(part.begin),
                logits_.as<float>() + static_cast<int64_t>(part.logits_begin) * spec_.vocab);
      part.stage = Stage::kDone;
      return true;
    case Stage::kDone:
      return false;
  }
  return false;
}

void Decoder::RunAttention(MicroBatch& part) {
  const auto group = static_cast<size_t>(context_.kv.group(part.layer));
  const RowSpan rows = {part.rows, batch_->positions.data() + part.begin,
                        batch_->block_tables[group].data() + part.begin};
  float* residual = part.residual.as<float>();
  attention_->Run(part.layer, LayerOf(part), rows, residual);
  if (!spec_.layers[static_cast<size_t>(part.layer)].moe) {
    RunDense(part);
    NextLayer(part);
    return;
  }
  moe_.Start(part.layer, LayerOf(part), part.rows, residual, TermsOf(part), part.moe);
  foresight_.Tell(part.layer, part.rows, residual);
  part.stage = Stage::kShared;
}

MoeLayer::JobTerms Decoder::TermsOf(const MicroBatch& part) {
  return {.lost = result_.lost.data() + part.begin,
          .degraded = result_.degraded.data() + part.begin,
          .priority = batch_->priority,
          .deadline = batch_->deadline};
}

void Decoder::RunDense(MicroBatch& part) {
  const int64_t hidden = spec_.hidden;
  float* residual = part.residual.as<float>();
  const kernels::MutableRows x = dense_in_.Reserve(context_.dtype, part.rows, hidden);
  context_.compute.RmsNorm(residual, hidden, part.rows, hidden, LayerOf(part).post_attention_norm,
                           spec_.norm_eps, x);
  float* out = Floats(dense_out_, part.rows * hidden);
  dense_.Run(LayerOf(part).mlp, AsRows(x), part.rows, out);
  AddRows(context_.compute, residual, out, part.rows, hidden);
}

void Decoder::Trace(const MicroBatch& part) {
  const int64_t width = moe_.width();
  for (size_t i = part.trace_begin; i < part.trace_end; ++i) {
    const int64_t row = batch_->trace_rows[i] - part.begin;
    const int64_t to = (static_cast<int64_t>(i) * moe_layers_ + part.moe_layer) * width;
    std::copy_n(part.moe.experts.as<int32_t>() + row * width, width,
                result_.routed_experts.data() + to);
    std::copy_n(part.moe.weights.as<float>() + row * width, width,
                result_.routed_weights.data() + to);
  }
}

void Decoder::NextLayer(MicroBatch& part) {
  ++part.layer;
  part.stage = part.layer == spec_.num_layers() ? Stage::kHead : Stage::kAttention;
}

const LayerWeights& Decoder::LayerOf(const MicroBatch& part) const {
  return weights_.layers[static_cast<size_t>(part.layer)];
}

}  // namespace switchyard::router
