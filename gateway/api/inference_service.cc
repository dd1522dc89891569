#include "gateway/api/inference_service.h"

#include <algorithm>
#include <deque>

#include "absl/time/clock.h"
#include "gateway/api/authorization.h"
#include "gateway/streams/request_id.h"
#include "services/base/clock.h"
#include "services/base/logging.h"
#include "services/base/status.h"
#include "services/rpc/status_map.h"

namespace switchyard::gateway {
namespace {

class StreamReactor;

// Between a generation and a reactor, whichever goes first. What to start is decided under the lock
// and started without it: gRPC may react before a start returns.
class StreamQueue final : public ChunkSink {
 public:
  StreamQueue(StreamReactor* reactor, size_t max_bytes)
      : reactor_(reactor), max_bytes_(max_bytes) {}

  bool OnChunk(const v1::GenerateResponse& chunk) override;
  void OnEnd(const absl::Status& status, int retry_after_ms) override;

  void OnWritten(bool ok);
  // The client has gone.
  void OnCancelled();
  absl::StatusCode code() const {
    absl::MutexLock lock(&mutex_);
    return status_.code();
  }

 private:
  enum class Next { kNothing, kWrite, kFinish };
  Next Decide() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Do(Next next);

  StreamReactor* const reactor_;  // alive until Finish was called
  const size_t max_bytes_;
  mutable absl::Mutex mutex_;
  // Not empty: the front is being written.
  std::deque<v1::GenerateResponse> queue_ ABSL_GUARDED_BY(mutex_);
  size_t bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;
  bool finished_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Status status_ ABSL_GUARDED_BY(mutex_);
  int retry_after_ms_ ABSL_GUARDED_BY(mutex_) = 0;
};

class StreamReactor final : public grpc::ServerWriteReactor<v1::GenerateResponse> {
 public:
  StreamReactor(grpc::CallbackServerContext* context, GatewayMetrics& metrics, size_t max_bytes)
      : context_(context),
        metrics_(metrics),
        start_(SteadyNow()),
        queue_(std::make_shared<StreamQueue>(this, max_bytes)) {}

  // From the method's handler only. gRPC holds OnCancel back until the handler has returned, so it
  // finds the generation of a call that was cancelled before there was one.
  void Start(Generator& generator, const v1::GenerateRequest& request, const CallContext& call) {
    request_id_ = call.request_id;
    auto generation = generator.Start(request, call, queue_);
    if (!generation.ok()) return queue_->OnEnd(generation.status(), 0);
    absl::MutexLock lock(&mutex_);
    generation_ = *generation;
  }
  void Refuse(const absl::Status& status) { queue_->OnEnd(status, 0); }

  void FinishWith(const absl::Status& status, int retry_after_ms) {
    if (status.code() == absl::StatusCode::kResourceExhausted) {
      context_->AddTrailingMetadata("retry-after",
                                    std::to_string(std::max(1, (retry_after_ms + 999) / 1000)));
    }
    Finish(rpc::ToGrpc(status));
  }

  void OnWriteDone(bool ok) override { queue_->OnWritten(ok); }
  void OnCancel() override {
    std::shared_ptr<Generation> generation;
    {
      absl::MutexLock lock(&mutex_);
      generation = generation_.lock();
    }
    if (generation) generation->Cancel();
    queue_->OnCancelled();
  }
  void OnDone() override {
    const absl::Duration took = SteadyNow() - start_;
    const std::string code(absl::StatusCodeToString(queue_->code()));
    metrics_.RequestEnded("grpc", "Generate", code, took);
    log::Info("request {}: Generate {} in {:.1f} ms", request_id_, code,
              absl::ToDoubleMilliseconds(took));
    delete this;
  }

 private:
  grpc::CallbackServerContext* const context_;
  GatewayMetrics& metrics_;
  const absl::Time start_;
  std::string request_id_ = "-";
  const std::shared_ptr<StreamQueue> queue_;
  absl::Mutex mutex_;
  std::weak_ptr<Generation> generation_ ABSL_GUARDED_BY(mutex_);
};

StreamQueue::Next StreamQueue::Decide() {
  if (writing_ || finished_) return Next::kNothing;
  if (!queue_.empty()) {
    writing_ = true;
    return Next::kWrite;
  }
  if (!ended_) return Next::kNothing;
  finished_ = true;
  return Next::kFinish;
}

void StreamQueue::Do(Next next) {
  if (next == Next::kNothing) return;
  const v1::GenerateResponse* front = nullptr;
  absl::Status status;
  int retry_after_ms = 0;
  {
    absl::MutexLock lock(&mutex_);
    if (next == Next::kWrite) front = &queue_.front();  // stays: only OnWritten takes it out
    status = status_;
    retry_after_ms = retry_after_ms_;
  }
  if (next == Next::kWrite) return reactor_->StartWrite(front);
  reactor_->FinishWith(status, retry_after_ms);
}

bool StreamQueue::OnChunk(const v1::GenerateResponse& chunk) {
  Next next;
  {
    absl::MutexLock lock(&mutex_);
    if (ended_) return false;
    bytes_ += chunk.ByteSizeLong();
    if (bytes_ > max_bytes_ && !queue_.empty()) {
      ended_ = true;
      status_ = ResourceExhausted("the client reads too slowly");
      queue_.resize(1);  // in flight
      return false;
    }
    queue_.push_back(chunk);
    next = Decide();
  }
  Do(next);
  return true;
}

void StreamQueue::OnEnd(const absl::Status& status, int retry_after_ms) {
  Next next;
  {
    absl::MutexLock lock(&mutex_);
    if (ended_) return;
    ended_ = true;
    status_ = status;
    retry_after_ms_ = retry_after_ms;
    next = Decide();
  }
  Do(next);
}

void StreamQueue::OnWritten(bool ok) {
  Next next;
  {
    absl::MutexLock lock(&mutex_);
    writing_ = false;
    bytes_ -= std::min(bytes_, static_cast<size_t>(queue_.front().ByteSizeLong()));
    queue_.pop_front();
    if (!ok) queue_.clear();  // OnCancelled comes, or has come
    next = Decide();
  }
  Do(next);
}

void StreamQueue::OnCancelled() {
  Next next;
  {
    absl::MutexLock lock(&mutex_);
    if (!ended_) status_ = absl::CancelledError("the client left");
    ended_ = true;
    if (!queue_.empty()) queue_.resize(1);
    next = Decide();
  }
  Do(next);
}

}  // namespace

absl::StatusOr<std::string> InferenceService::FairKeyOf(
    grpc::CallbackServerContext* context) const {
  return Authorize(options_.keys, *context);
}

grpc::ServerWriteReactor<v1::GenerateResponse>* InferenceService::Generate(
    grpc::CallbackServerContext* context, const v1::GenerateRequest* request) {
  auto* reactor = new StreamReactor(context, metrics_, options_.max_buffered_bytes);
  const auto fair_key = FairKeyOf(context);
  if (!fair_key.ok()) {
    reactor->Refuse(fair_key.status());
    return reactor;
  }
  CallContext call;
  call.fair_key = *fair_key;
  const std::string_view given = MetadataOf(*context, "x-request-id");
  if (IsRequestId(given)) {
    call.request_id = given;
  } else if (request->request_id().empty()) {
    call.request_id = MakeRequestId();
  } else if (IsRequestId(request->request_id())) {
    call.request_id = request->request_id();
  }
  if (!call.request_id.empty()) context->AddInitialMetadata("x-request-id", call.request_id);
  if (context->deadline() != std::chrono::system_clock::time_point::max()) {
    // gRPC says it by the machine's clock.
    call.deadline = SteadyNow() + (absl::FromChrono(context->deadline()) - absl::Now());
  }
  reactor->Start(generator_, *request, call);
  return reactor;
}

grpc::ServerUnaryReactor* InferenceService::Reply(grpc::CallbackServerContext* context,
                                                  const char* method, absl::Time start,
                                                  const absl::Status& status) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  metrics_.RequestEnded("grpc", method, std::string(absl::StatusCodeToString(status.code())),
                        SteadyNow() - start);
  reactor->Finish(rpc::ToGrpc(status));
  return reactor;
}

grpc::ServerUnaryReactor* InferenceService::Tokenize(grpc::CallbackServerContext* context,
                                                     const v1::TokenizeRequest* request,
                                                     v1::TokenizeResponse* response) {
  const absl::Time start = SteadyNow();
  if (auto key = FairKeyOf(context); !key.ok())
    return Reply(context, "Tokenize", start, key.status());
  auto result = generator_.Tokenize(*request);
  if (result.ok()) *response = *std::move(result);
  return Reply(context, "Tokenize", start, result.status());
}

grpc::ServerUnaryReactor* InferenceService::Detokenize(grpc::CallbackServerContext* context,
                                                       const v1::DetokenizeRequest* request,
                                                       v1::DetokenizeResponse* response) {
  const absl::Time start = SteadyNow();
  if (auto key = FairKeyOf(context); !key.ok()) {
    return Reply(context, "Detokenize", start, key.status());
  }
  auto result = generator_.Detokenize(*request);
  if (result.ok()) *response = *std::move(result);
  return Reply(context, "Detokenize", start, result.status());
}

grpc::ServerUnaryReactor* InferenceService::ListModels(grpc::CallbackServerContext* context,
                                                       const v1::ListModelsRequest*,
                                                       v1::ListModelsResponse* response) {
  const absl::Time start = SteadyNow();
  if (auto key = FairKeyOf(context); !key.ok()) {
    return Reply(context, "ListModels", start, key.status());
  }
  *response = generator_.ListModels();
  return Reply(context, "ListModels", start, absl::OkStatus());
}

}  // namespace switchyard::gateway
