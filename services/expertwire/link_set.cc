#include "services/expertwire/link_set.h"

#include <grpcpp/completion_queue.h>

#include <algorithm>
#include <utility>

#include "services/expertwire/completion_loop.h"
#include "services/expertwire/grpc_link.h"
#include "services/expertwire/local_link.h"
#include "services/expertwire/two_lanes.h"

namespace switchyard::expertwire {

LinkSet::LinkSet(LinkSetOptions options) : options_(std::move(options)) {}

LinkSet::~LinkSet() {
  keeper_ = std::jthread();  // asks it to stop and joins
  if (!loop_) return;
  absl::MutexLock lock(&loop_->mutex());
  for (GrpcLink* link : grpc_links_) link->Stop();
  while (!std::all_of(grpc_links_.begin(), grpc_links_.end(),
                      [](const GrpcLink* link) { return link->stopped(); })) {
    loop_->Sleep(absl::Now() + kTick);
  }
  loop_->Close();
}

void LinkSet::AddLocal(std::string name, CallHandler& worker) {
  links_.push_back(std::make_unique<LocalLink>(std::move(name), options_.hello, worker));
}

void LinkSet::AddGrpc(const GrpcLinkOptions& options) {
  if (!loop_) {
    loop_ = std::make_unique<CompletionLoop>(std::make_unique<grpc::CompletionQueue>());
  }
  if (options.lanes == 1) {
    links_.push_back(MakeLane(options, 0));
  } else {
    auto quick = MakeLane(options, 0);
    links_.push_back(std::make_unique<TwoLanes>(std::move(quick), MakeLane(options, 1)));
  }
  if (!keeper_.joinable()) {
    keeper_ = std::jthread([this](const std::stop_token& stop) { Keep(stop); });
  }
}

std::unique_ptr<GrpcLink> LinkSet::MakeLane(const GrpcLinkOptions& options, int lane) {
  pb::Hello hello = options_.hello;
  hello.set_lanes(static_cast<uint32_t>(options.lanes));
  hello.set_lane(static_cast<uint32_t>(lane));
  auto link = std::make_unique<GrpcLink>(options, hello, *loop_, pool_);
  absl::MutexLock lock(&loop_->mutex());
  link->Tick(absl::Now());
  grpc_links_.push_back(link.get());
  return link;
}

void LinkSet::Tick() {
  const absl::Time now = absl::Now();
  for (GrpcLink* link : grpc_links_) link->Tick(now);
}

bool LinkSet::AnyEvents() const {
  return std::any_of(grpc_links_.begin(), grpc_links_.end(),
                     [](const GrpcLink* link) { return link->has_events(); });
}

void LinkSet::Keep(const std::stop_token& stop) {
  while (!stop.stop_requested()) {
    absl::SleepFor(kTick);
    crowded_.store(MachineIsCrowded(), std::memory_order_relaxed);
    if (!loop_->mutex().TryLock()) continue;  // the engine thread is at it
    loop_->Poll();
    Tick();
    loop_->mutex().Unlock();
  }
}

bool LinkSet::Poll(std::vector<Event>* events) {
  if (loop_) {
    absl::MutexLock lock(&loop_->mutex());
    loop_->Poll();
  }
  bool any = false;
  for (size_t i = 0; i < links_.size(); ++i) {
    scratch_.clear();
    if (!links_[i]->Poll(&scratch_)) continue;
    any = true;
    for (LinkEvent& event : scratch_) events->push_back({static_cast<int>(i), std::move(event)});
  }
  return any;
}

void LinkSet::Wait(absl::Time until) {
  if (!loop_) return;  // local workers compute in Poll
  const bool crowded = crowded_.load(std::memory_order_relaxed);
  Ladder ladder(options_.yield_for, crowded);
  while (true) {
    bool sleep = false;
    {
      absl::MutexLock lock(&loop_->mutex());
      loop_->Poll();
      if (AnyEvents()) return;
      sleep = crowded && loop_->SleepsLightly();
    }
    if (sleep || !ladder.Turn()) {
      absl::MutexLock lock(&loop_->mutex());
      if (AnyEvents()) return;  // of the keeper's making: nothing would wake us for them
      loop_->Sleep(std::min(until, absl::Now() + kTick));
      Tick();
      if (AnyEvents()) return;
    }
    if (absl::Now() >= until) return;
  }
}

}  // namespace switchyard::expertwire
