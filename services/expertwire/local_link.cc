#include "services/expertwire/local_link.h"

#include <algorithm>
#include <utility>

#include "services/base/status.h"
#include "services/expertwire/handshake.h"

namespace switchyard::expertwire {

// Touched by the engine thread alone: answers come from inside its own Poll.
struct LocalLink::Sink : AnswerSink {
  void OnAnswer(Answer answer) override { answers.push_back(std::move(answer)); }
  void OnComputing(uint64_t, uint32_t) override {}

  std::vector<Answer> answers;
  int64_t open = 0;  // parts sent and not yet answered
};

LocalLink::LocalLink(std::string name, const pb::Hello& router, CallHandler& worker)
    : name_(std::move(name)),
      worker_(worker),
      version_(worker.holds_version()),
      peer_(std::make_shared<const pb::Hello>(worker.hello())),
      refused_(CheckPeer(router, *peer_)),
      sink_(std::make_shared<Sink>()) {
  if (refused_.ok()) worker_.OnRouter(sink_.get());
}

LocalLink::~LocalLink() { worker_.Forget(sink_.get()); }

LinkState LocalLink::state() const {
  if (!refused_.ok()) return LinkState::kRefused;
  return worker_.draining() ? LinkState::kDraining : LinkState::kUp;
}

absl::Status LocalLink::why() const {
  if (!refused_.ok()) return refused_;
  return worker_.draining() ? Unavailable("{} is draining", name_) : absl::OkStatus();
}

std::shared_ptr<const pb::Hello> LocalLink::peer() const {
  const uint64_t now = worker_.holds_version();  // before the hello, which may then be newer
  absl::MutexLock lock(&mutex_);
  if (now != version_) {
    version_ = now;
    peer_ = std::make_shared<const pb::Hello>(worker_.hello());
  }
  return peer_;
}

void LocalLink::AckEpoch(uint64_t epoch) { worker_.OnMapAck(sink_.get(), epoch); }

LinkStats LocalLink::stats() const {
  LinkStats stats;
  stats.frames_sent = frames_sent_.load(std::memory_order_relaxed);
  stats.frames_received = frames_received_.load(std::memory_order_relaxed);
  stats.bytes_sent = bytes_sent_.load(std::memory_order_relaxed);
  stats.bytes_received = bytes_received_.load(std::memory_order_relaxed);
  stats.connects = refused_.ok();
  return stats;
}

absl::Status LocalLink::Send(Call part) {
  SY_RETURN_IF_ERROR(refused_);
  frames_sent_.fetch_add(1, std::memory_order_relaxed);
  bytes_sent_.fetch_add(part.payload.bytes(), std::memory_order_relaxed);
  ++sink_->open;
  worker_.Accept(std::move(part), sink_);
  return absl::OkStatus();
}

void LocalLink::Cancel(uint64_t call_id, uint32_t attempt) {
  sink_->open -= worker_.Cancel(sink_.get(), call_id, attempt).parts;
  auto& answers = sink_->answers;
  const auto of_call = [&](const Answer& a) {
    return a.call_id == call_id && a.attempt == attempt;
  };
  const auto kept = std::remove_if(answers.begin(), answers.end(), of_call);
  sink_->open -= answers.end() - kept;
  answers.erase(kept, answers.end());
}

bool LocalLink::Poll(std::vector<LinkEvent>* events) {
  while (sink_->open > static_cast<int64_t>(sink_->answers.size()) && worker_.Compute()) {
  }
  if (sink_->answers.empty()) return false;
  for (Answer& answer : sink_->answers) {
    frames_received_.fetch_add(1, std::memory_order_relaxed);
    bytes_received_.fetch_add(answer.payload.bytes(), std::memory_order_relaxed);
    events->emplace_back(std::move(answer));
  }
  sink_->open -= static_cast<int64_t>(sink_->answers.size());
  sink_->answers.clear();
  return true;
}

}  // namespace switchyard::expertwire
