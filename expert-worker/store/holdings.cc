#include "expert-worker/store/holdings.h"

#include <algorithm>
#include <utility>

#include "services/base/status.h"
#include "services/expertwire/held.h"

namespace switchyard::worker {
namespace {

namespace pb = expertwire::pb;

constexpr int kMostReasons = 64;  // that a router is told

}  // namespace

Holdings::Holdings(const ExpertStore& store)
    : store_(store),
      layers_(store.layers()),
      experts_(store.experts()),
      slots_(static_cast<size_t>(layers_) * static_cast<size_t>(experts_)) {
  absl::MutexLock lock(&mutex_);
  for (int32_t layer = 0; layer < layers_; ++layer) {
    for (int32_t expert = 0; expert < experts_; ++expert) {
      if (store.Find(layer, expert) == nullptr) continue;
      At({layer, expert}) = {.state = State::kHeld, .wanted = true, .placed = true};
    }
  }
}

void Holdings::Changed() { version_.fetch_add(1, std::memory_order_release); }

// `state` is what it is in from then on.
void Holdings::Fail(ExpertId id, State state, std::string why) {
  Slot& slot = At(id);
  slot.state = state;
  if (slot.wanted) failed_[{id.layer, id.expert}] = std::move(why);
  Changed();
}

// What the placement wants waits its turn; what nobody else holds goes first.
void Holdings::Queue(ExpertId id) {
  Slot& slot = At(id);
  slot.state = slot.placed ? State::kWaits : State::kUrgent;
  (slot.placed ? background_ : urgent_).push_back(id);
}

// Those that the model has, each once, in order.
std::vector<ExpertId> Holdings::ExpertsOf(const pb::Assign& assign) {
  std::vector<ExpertId> out;
  std::vector<bool> seen(slots_.size(), false);
  expertwire::ForEachHeld(assign.experts(), layers_, experts_, [&](int layer, int expert) {
    const ExpertId id{layer, expert};
    if (!store_.Exists(id) || seen[Index(id)]) return;
    seen[Index(id)] = true;
    out.push_back(id);
  });
  return out;
}

void Holdings::Assign(const pb::Assign& assign) {
  absl::MutexLock lock(&mutex_);
  if (assign.also()) {
    if (assign.epoch() >= assigned_) Add(assign);
  } else if (assign.epoch() > assigned_) {
    Place(assign);
  }
}

void Holdings::Place(const pb::Assign& assign) {
  assigned_ = assign.epoch();
  failed_.clear();  // it may have been mended
  urgent_.clear();
  background_.clear();
  for (Slot& slot : slots_) {
    slot.wanted = slot.placed = false;
    if (slot.state == State::kWaits || slot.state == State::kUrgent ||
        slot.state == State::kFailed) {
      slot.state = State::kAbsent;
    }
  }
  missing_ = 0;
  for (const ExpertId id : ExpertsOf(assign)) {
    Slot& slot = At(id);
    slot.wanted = slot.placed = true;
    if (slot.state == State::kHeld) continue;
    ++missing_;
    if (slot.state == State::kAbsent) Queue(id);
  }
  if (missing_ == 0) epoch_ = assigned_;
  Changed();
}

void Holdings::Add(const pb::Assign& assign) {
  for (const ExpertId id : ExpertsOf(assign)) {
    Slot& slot = At(id);
    slot.wanted = true;
    if (failed_.erase({id.layer, id.expert}) > 0) Changed();
    if (slot.state != State::kAbsent && slot.state != State::kWaits &&
        slot.state != State::kFailed) {
      continue;  // held, or on its way
    }
    slot.state = State::kUrgent;
    urgent_.push_back(id);
  }
}

void Holdings::OnRouter(const void* router) {
  absl::MutexLock lock(&mutex_);
  acks_.emplace(router, 0);
}

void Holdings::OnAck(const void* router, uint64_t epoch) {
  absl::MutexLock lock(&mutex_);
  const auto it = acks_.find(router);
  if (it != acks_.end()) it->second = std::max(it->second, epoch);
}

void Holdings::Forget(const void* router) {
  absl::MutexLock lock(&mutex_);
  acks_.erase(router);
}

std::optional<ExpertId> Holdings::Take(std::deque<ExpertId>& queue, State state) {
  while (!queue.empty()) {
    const ExpertId id = queue.front();
    queue.pop_front();
    if (At(id).state != state) continue;
    At(id).state = State::kLoading;
    return id;
  }
  return std::nullopt;
}

std::optional<Holdings::Next> Holdings::NextToLoad() {
  absl::MutexLock lock(&mutex_);
  if (const auto id = Take(urgent_, State::kUrgent)) return Next{*id, true};
  if (const auto id = Take(background_, State::kWaits)) return Next{*id, false};
  return std::nullopt;
}

bool Holdings::UrgentWaits() const {
  absl::MutexLock lock(&mutex_);
  return !urgent_.empty();
}

void Holdings::OnLoaded(ExpertId id) {
  absl::MutexLock lock(&mutex_);
  Slot& slot = At(id);
  slot.state = State::kHeld;
  if (slot.placed && --missing_ == 0) epoch_ = assigned_;
  Changed();
}

void Holdings::OnFailed(ExpertId id, const std::string& why) {
  absl::MutexLock lock(&mutex_);
  Fail(id, At(id).wanted ? State::kFailed : State::kAbsent, why);
}

bool Holdings::OnLost(ExpertId id, const std::string& why) {
  absl::MutexLock lock(&mutex_);
  if (At(id).state != State::kHeld) return false;
  if (At(id).placed) ++missing_;
  Fail(id, State::kLeaving, why);
  return true;
}

bool Holdings::FencePassed() const {
  return !acks_.empty() && std::all_of(acks_.begin(), acks_.end(), [this](const auto& ack) {
    mutex_.AssertHeld();
    return ack.second >= assigned_;
  });
}

std::vector<ExpertId> Holdings::MayGo() const {
  absl::MutexLock lock(&mutex_);
  std::vector<ExpertId> out;
  if (!FencePassed()) return out;
  for (size_t i = 0; i < slots_.size(); ++i) {
    if (!Unwanted(slots_[i])) continue;
    out.push_back({static_cast<int32_t>(i / static_cast<size_t>(experts_)),
                   static_cast<int32_t>(i % static_cast<size_t>(experts_))});
  }
  return out;
}

bool Holdings::BeginRemoval(ExpertId id) {
  absl::MutexLock lock(&mutex_);
  if (!FencePassed() || !Unwanted(At(id))) return false;
  At(id).state = State::kLeaving;
  Changed();
  return true;
}

void Holdings::OnRemoved(ExpertId id) {
  absl::MutexLock lock(&mutex_);
  Slot& slot = At(id);
  if (failed_.contains({id.layer, id.expert})) {  // it was lost
    slot.state = State::kFailed;
  } else if (slot.wanted) {  // again, meanwhile
    Queue(id);
  } else {
    slot.state = State::kAbsent;
  }
}

bool Holdings::Coming(int64_t layer, int64_t expert) const {
  const ExpertId id{static_cast<int32_t>(layer), static_cast<int32_t>(expert)};
  if (!InRange(id)) return false;
  absl::MutexLock lock(&mutex_);
  const State state = slots_[Index(id)].state;
  return state == State::kWaits || state == State::kUrgent || state == State::kLoading;
}

void Holdings::FillHolds(pb::Holds* holds) const {
  absl::MutexLock lock(&mutex_);
  holds->set_epoch(epoch_);
  holds->set_assigned_epoch(assigned_);
  const auto is_held = [this](int layer, int expert) {
    mutex_.AssertHeld();
    return slots_[Index({layer, expert})].state == State::kHeld;
  };
  expertwire::AddHeld(layers_, experts_, is_held, holds->mutable_held());
  for (const auto& [id, why] : failed_) {
    // All that the model has, as a router asks somebody else for them; peers may name others too.
    if (static_cast<size_t>(holds->failed_size()) == slots_.size()) break;
    pb::FailedExpert* out = holds->add_failed();
    out->set_layer(id.first);
    out->set_expert(static_cast<uint32_t>(id.second));
    if (holds->failed_size() <= kMostReasons) out->set_why(why);
  }
}

uint64_t Holdings::epoch() const {
  absl::MutexLock lock(&mutex_);
  return epoch_;
}

uint64_t Holdings::assigned_epoch() const {
  absl::MutexLock lock(&mutex_);
  return assigned_;
}

uint64_t Holdings::to_load() const {
  absl::MutexLock lock(&mutex_);
  return static_cast<uint64_t>(std::count_if(slots_.begin(), slots_.end(), [](const Slot& slot) {
    return slot.state == State::kWaits || slot.state == State::kUrgent ||
           slot.state == State::kLoading;
  }));
}

}  // namespace switchyard::worker
