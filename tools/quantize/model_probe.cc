#include "tools/quantize/model_probe.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "expert-worker/worker.h"
#include "router/dispatch/link_dispatcher.h"
#include "router/graph/decoder.h"
#include "router/graph/weights.h"
#include "router/kv/kv_storage.h"
#include "router/router.h"
#include "services/base/cores.h"
#include "services/base/status.h"
#include "services/expertwire/link_set.h"

namespace switchyard::quantize {
namespace {

constexpr int64_t kWindow = 512, kStepRows = 64;             // logits of a step are held
constexpr int64_t kBlocks = kWindow / router::kBlockTokens;  // of each group of layers

// Shows jobs on their way.
class WatchedDispatcher : public router::Dispatcher {
 public:
  explicit WatchedDispatcher(router::Dispatcher& to) : to_(to) {}

  router::MoeTicket Start(const router::MoeJob& job) override {
    if (observer) observer(job);
    return to_.Start(job);
  }
  bool Finished(router::MoeTicket ticket) override { return to_.Finished(ticket); }
  void Abandon(router::MoeTicket ticket) override { to_.Abandon(ticket); }
  void Wait(absl::Time until) override { to_.Wait(until); }

  ModelProbe::Observer observer;

 private:
  router::Dispatcher& to_;
};

double LogLoss(const float* logits, int64_t vocab, int32_t token) {
  const float max = *std::max_element(logits, logits + vocab);
  double sum = 0;
  for (int64_t i = 0; i < vocab; ++i) sum += kernels::Exp(logits[i] - max);
  return std::log(sum) + max - logits[token];
}

}  // namespace

// Members stand in order of dependence.
struct ModelProbe::Parts {
  Parts(int threads, kernels::Isa isa) : pool(threads), compute(isa, pool) {}

  kernels::ThreadPool pool;
  kernels::Compute compute;
  router::OpenedModel model;
  router::RouterWeights weights;
  std::unique_ptr<worker::Worker> worker;
  std::unique_ptr<router::KvStorage> kv;
  std::unique_ptr<expertwire::LinkSet> links;
  std::unique_ptr<router::LinkDispatcher> dispatcher;
  std::unique_ptr<WatchedDispatcher> watched;
  std::unique_ptr<router::Decoder> decoder;
  std::vector<int32_t> blocks;
  router::StepBatch batch;
};

absl::StatusOr<std::unique_ptr<ModelProbe>> ModelProbe::Open(const std::string& directory,
                                                             int threads, const std::string& isa) {
  constexpr DType kDType = DType::kBF16;
  SY_ASSIGN_OR_RETURN(const kernels::Isa chosen, kernels::ChooseIsa(isa));
  auto parts = std::make_unique<Parts>(threads > 0 ? threads : UsableCores(), chosen);
  SY_ASSIGN_OR_RETURN(parts->model, router::OpenModel(directory));
  const ModelSpec& spec = parts->model.spec;
  SY_ASSIGN_OR_RETURN(parts->weights, router::RouterWeights::Load(spec, *parts->model.source));
  const worker::WorkerOptions options{.dtype = kDType, .isa = isa};
  SY_ASSIGN_OR_RETURN(parts->worker,
                      worker::Worker::Create(spec, parts->model.fingerprint, parts->model.source,
                                             options, &parts->pool));
  SY_ASSIGN_OR_RETURN(router::KvStorage kv,
                      router::KvStorage::Create(spec, kDType, KvLayoutOf(spec).groups() * kBlocks));
  parts->kv = std::make_unique<router::KvStorage>(std::move(kv));
  parts->links = std::make_unique<expertwire::LinkSet>(expertwire::LinkSetOptions{
      .hello = expertwire::MakeHello("quantize", parts->worker->numerics(), {}, false)});
  parts->links->AddLocal("experts", *parts->worker);
  parts->dispatcher = std::make_unique<router::LinkDispatcher>(
      spec, kDType, *parts->links, parts->pool, router::DispatchOptions{});
  parts->watched = std::make_unique<WatchedDispatcher>(*parts->dispatcher);
  parts->decoder = std::make_unique<router::Decoder>(
      router::DecoderOptions{.dtype = kDType, .max_positions = kWindow}, spec, parts->weights,
      parts->compute, *parts->kv, *parts->watched);
  const auto groups = static_cast<size_t>(parts->kv->groups());
  parts->batch.block_tables.resize(groups);
  parts->blocks.resize(groups * kBlocks);
  std::iota(parts->blocks.begin(), parts->blocks.end(), 0);
  return std::unique_ptr<ModelProbe>(new ModelProbe(std::move(parts)));
}

ModelProbe::ModelProbe(std::unique_ptr<Parts> parts) : parts_(std::move(parts)) {}
ModelProbe::~ModelProbe() = default;

const ModelSpec& ModelProbe::spec() const { return parts_->model.spec; }
checkpoint::TensorSource& ModelProbe::source() { return *parts_->model.source; }
const kernels::Compute& ModelProbe::compute() const { return parts_->compute; }

absl::StatusOr<double> ModelProbe::LossOf(std::span<const int32_t> window) {
  const int64_t vocab = spec().vocab, rows = static_cast<int64_t>(window.size()) - 1;
  std::vector<double> losses(static_cast<size_t>(rows));
  for (int64_t begin = 0; begin < rows; begin += kStepRows) {
    const int64_t end = std::min(begin + kStepRows, rows);
    router::StepBatch& batch = parts_->batch;
    batch.Clear();
    for (int64_t p = begin; p < end; ++p) {
      batch.tokens.push_back(window[static_cast<size_t>(p)]);
      batch.positions.push_back(static_cast<int32_t>(p));
      for (size_t group = 0; group < batch.block_tables.size(); ++group) {
        batch.block_tables[group].push_back(parts_->blocks.data() + group * kBlocks);
      }
      batch.logit_rows.push_back(static_cast<int32_t>(p - begin));
    }
    parts_->decoder->Start(batch);
    while (parts_->decoder->Advance() == router::ModelRunner::Progress::kWaiting) {
      parts_->decoder->Wait(absl::InfiniteFuture());
    }
    const router::StepResult& result = parts_->decoder->result();
    if (std::ranges::count(result.lost, 1) > 0) {
      return Internal("rows of positions {} to {} were lost by the experts", begin, end - 1);
    }
    const float* logits = result.logits;
    parts_->pool.ParallelFor(end - begin, 1, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        losses[static_cast<size_t>(begin + i)] =
            LogLoss(logits + i * vocab, vocab, window[static_cast<size_t>(begin + i + 1)]);
      }
    });
  }
  return std::accumulate(losses.begin(), losses.end(), 0.0);
}

absl::StatusOr<double> ModelProbe::Perplexity(std::span<const int32_t> tokens, int32_t first,
                                              const ProgressFn& progress, Observer observer) {
  const size_t most = static_cast<size_t>(std::min<int64_t>(kWindow, spec().max_position));
  parts_->watched->observer = std::move(observer);
  double loss = 0;
  uint64_t predicted = 0;
  std::vector<int32_t> window;
  for (size_t at = 0; at < tokens.size();) {
    window.clear();
    if (first >= 0) window.push_back(first);
    if (tokens[at] == first) ++at;
    while (at < tokens.size() && tokens[at] != first && window.size() < most) {
      window.push_back(tokens[at++]);
    }
    if (window.size() < 2) continue;
    SY_ASSIGN_OR_RETURN(const double of_window, LossOf(window));
    loss += of_window;
    predicted += window.size() - 1;
    progress(at, tokens.size());
  }
  parts_->watched->observer = nullptr;
  if (predicted == 0) return InvalidArgument("the text has nothing to predict");
  return std::exp(loss / static_cast<double>(predicted));
}

}  // namespace switchyard::quantize
