#include "services/expertwire/link_set.h"

#include <grpcpp/completion_queue.h>

#include <algorithm>
#include <utility>

#include "services/base/check.h"
#include "services/base/clock.h"
#include "services/expertwire/completion_loop.h"
#include "services/expertwire/grpc_link.h"
#include "services/expertwire/local_link.h"
#include "services/expertwire/two_lanes.h"

namespace switchyard::expertwire {

LinkSet::LinkSet(LinkSetOptions options)
    : options_(std::move(options)),
      loop_(std::make_unique<CompletionLoop>(std::make_unique<grpc::CompletionQueue>())) {}

LinkSet::~LinkSet() {
  keeper_ = std::jthread();  // asks it to stop and joins
  absl::MutexLock lock(&loop_->mutex());
  const auto stopped = [](const LinkSlot* slot) {
    return std::all_of(slot->lanes().begin(), slot->lanes().end(),
                       [](const GrpcLink* lane) { return lane->stopped(); });
  };
  for (LinkSlot* slot : slots_) {
    for (GrpcLink* lane : slot->lanes()) lane->Stop();
  }
  while (!std::all_of(slots_.begin(), slots_.end(), stopped)) loop_->Sleep(SteadyNow() + kTick);
  loop_->Close();
}

bool LinkSet::Append(std::unique_ptr<ExpertLink> link) {
  const size_t at = count_.load(std::memory_order_relaxed);
  if (at == kLinksMax) return false;
  links_[at] = std::move(link);
  count_.store(at + 1, std::memory_order_release);
  return true;
}

void LinkSet::AddLocal(std::string name, CallHandler& worker) {
  Add(std::make_unique<LocalLink>(std::move(name), options_.hello, worker));
}

void LinkSet::Add(std::unique_ptr<ExpertLink> link) {
  absl::MutexLock adding(&adding_);
  SY_CHECK(Append(std::move(link)));
}

bool LinkSet::AddGrpc(const GrpcLinkOptions& options) {
  absl::MutexLock adding(&adding_);
  LinkSlot* room = nullptr;
  {
    absl::MutexLock lock(&loop_->mutex());
    if (LinkSlot* same = Find(options.target); same != nullptr && same->leaving()) {
      same->Stay();
      return true;
    }
    const auto empty = std::find_if(slots_.begin(), slots_.end(),
                                    [](const LinkSlot* slot) { return slot->empty(); });
    if (empty != slots_.end()) room = *empty;
    if (room == nullptr && links().size() == kLinksMax) return false;
  }
  auto quick = MakeLane(options, 0);
  LinkSlot::Tenant tenant{.lanes = {quick.get()}, .name = &*names_.insert(options.target).first};
  if (options.lanes == 1) {
    tenant.link = std::move(quick);
  } else {
    auto bulk = MakeLane(options, 1);
    tenant.lanes.push_back(bulk.get());
    tenant.link = std::make_shared<TwoLanes>(std::move(quick), std::move(bulk));
  }
  {
    absl::MutexLock lock(&loop_->mutex());
    for (GrpcLink* lane : tenant.lanes) lane->Tick(SteadyNow());
    if (room != nullptr) {
      room->MoveIn(std::move(tenant));
    } else {
      auto slot = std::make_unique<LinkSlot>(std::move(tenant));
      slots_.push_back(slot.get());
      SY_CHECK(Append(std::move(slot)));
    }
  }
  remote_.store(true, std::memory_order_release);
  if (!keeper_.joinable()) {
    keeper_ = std::jthread([this](const std::stop_token& stop) { Keep(stop); });
  }
  return true;
}

bool LinkSet::Remove(std::string_view target, absl::Duration patience) {
  absl::MutexLock lock(&loop_->mutex());
  LinkSlot* slot = Find(target);
  if (slot == nullptr || !slot->serving()) return false;
  slot->Leave(SteadyNow() + patience);
  return true;
}

void LinkSet::LetGo(std::string_view target) {
  absl::MutexLock lock(&loop_->mutex());
  const LinkSlot* slot = Find(target);
  if (slot == nullptr || !slot->serving()) return;
  const auto& lanes = slot->lanes();
  const bool drained = std::all_of(lanes.begin(), lanes.end(), [](const GrpcLink* lane) {
    return lane->state() == LinkState::kDraining && lane->idle();
  });
  if (!drained) return;
  for (GrpcLink* lane : lanes) lane->LetGo();
}

// The link to `target` that serves, else one that is leaving.
LinkSlot* LinkSet::Find(std::string_view target) const {
  LinkSlot* found = nullptr;
  for (LinkSlot* slot : slots_) {
    if (slot->name() != target) continue;
    if (slot->serving()) return slot;
    if (slot->leaving()) found = slot;
  }
  return found;
}

std::unique_ptr<GrpcLink> LinkSet::MakeLane(const GrpcLinkOptions& options, int lane) {
  pb::Hello hello = options_.hello;
  hello.set_lanes(static_cast<uint32_t>(options.lanes));
  hello.set_lane(static_cast<uint32_t>(lane));
  return std::make_unique<GrpcLink>(options, hello, *loop_, pool_);
}

void LinkSet::Tick() {
  const absl::Time now = SteadyNow();
  next_tick_ = now + kTick;
  for (LinkSlot* slot : slots_) {
    for (GrpcLink* lane : slot->lanes()) lane->Tick(now);
    if (LinkSlot::Tenant gone = slot->Tick(now); gone.link) gone_.push_back(std::move(gone));
  }
}

bool LinkSet::AnyEvents() const {
  return std::any_of(slots_.begin(), slots_.end(), [](const LinkSlot* slot) {
    return std::any_of(slot->lanes().begin(), slot->lanes().end(),
                       [](const GrpcLink* lane) { return lane->has_events(); });
  });
}

void LinkSet::Keep(const std::stop_token& stop) {
  while (!stop.stop_requested()) {
    absl::SleepFor(kTick);
    crowded_.store(MachineIsCrowded(), std::memory_order_relaxed);
    if (!loop_->mutex().TryLock()) continue;  // the engine thread is at it
    loop_->Poll();
    Tick();
    std::vector<LinkSlot::Tenant> gone = std::exchange(gone_, {});
    loop_->mutex().Unlock();
  }
}

bool LinkSet::Poll(std::vector<Event>* events) {
  if (remote_.load(std::memory_order_acquire)) {
    absl::MutexLock lock(&loop_->mutex());
    loop_->Poll();
  }
  bool any = false;
  for (size_t i = 0; i < links().size(); ++i) {
    scratch_.clear();
    if (!links_[i]->Poll(&scratch_)) continue;
    any = true;
    for (LinkEvent& event : scratch_) events->push_back({static_cast<int>(i), std::move(event)});
  }
  return any;
}

void LinkSet::Wait(absl::Time until) {
  if (!remote_.load(std::memory_order_acquire)) return;  // local workers compute in Poll
  const bool crowded = crowded_.load(std::memory_order_relaxed);
  Ladder ladder(options_.yield_for, crowded);
  while (true) {
    bool sleep = false;
    {
      absl::MutexLock lock(&loop_->mutex());
      loop_->Poll();
      // On a crowded machine a yield may take all of a short wait, time after time, and the keeper
      // finds the mutex taken: whoever wakes where the other runs meets it just there.
      if (SteadyNow() >= next_tick_) Tick();
      if (AnyEvents()) return;
      sleep = crowded && loop_->SleepsLightly();
    }
    if (sleep || !ladder.Turn()) {
      absl::MutexLock lock(&loop_->mutex());
      if (AnyEvents()) return;  // of the keeper's making: nothing would wake us for them
      loop_->Sleep(std::min(until, SteadyNow() + kTick));
      Tick();
      if (AnyEvents()) return;
    }
    if (SteadyNow() >= until) return;
  }
}

}  // namespace switchyard::expertwire
