#include "services/expertwire/link_slot.h"

#include <algorithm>
#include <utility>

#include "services/base/status.h"
#include "services/expertwire/grpc_link.h"

namespace switchyard::expertwire {

LinkState LinkSlot::state() const {
  const Phase now = phase();
  const auto link = this->link();
  if (!link || now == Phase::kStopping || now == Phase::kEmpty) return LinkState::kGone;
  const LinkState state = link->state();
  return now == Phase::kLeaving && state == LinkState::kUp ? LinkState::kDraining : state;
}

absl::Status LinkSlot::why() const {
  const auto link = this->link();
  if (!link || phase() != Phase::kServing) return Unavailable("{} was removed", name());
  return link->why();
}

std::shared_ptr<const pb::Hello> LinkSlot::peer() const {
  const auto link = this->link();
  return link ? link->peer() : nullptr;
}

uint64_t LinkSlot::generation() const {
  absl::MutexLock lock(&link_mutex_);
  return past_ + (link_ ? link_->generation() : 0);
}

bool LinkSlot::suspect() const {
  const auto link = this->link();
  return link && link->suspect();
}

bool LinkSlot::Computing(uint64_t call_id, uint32_t attempt) {
  const auto link = this->link();
  return link && link->Computing(call_id, attempt);
}

LinkStats LinkSlot::stats() const {
  const auto link = this->link();
  return link ? link->stats() : LinkStats{};
}

size_t LinkSlot::max_part_bytes() const {
  const auto link = this->link();
  return link ? link->max_part_bytes() : size_t{1} << 20;
}

absl::Status LinkSlot::Send(Call part) {
  const auto link = this->link();
  if (!link || phase() != Phase::kServing) return why();
  return link->Send(std::move(part));
}

void LinkSlot::Cancel(uint64_t call_id, uint32_t attempt) {
  if (const auto link = this->link()) link->Cancel(call_id, attempt);
}

void LinkSlot::Assign(pb::Assign assign) {
  if (const auto link = this->link()) link->Assign(std::move(assign));
}

void LinkSlot::AckEpoch(uint64_t epoch) {
  if (const auto link = this->link()) link->AckEpoch(epoch);
}

void LinkSlot::Prefetch(pb::Prefetch prefetch) {
  if (const auto link = this->link()) link->Prefetch(std::move(prefetch));
}

bool LinkSlot::Poll(std::vector<LinkEvent>* events) {
  std::shared_ptr<ExpertLink> link;
  uint64_t past = 0;
  {
    absl::MutexLock lock(&link_mutex_);
    link = link_;
    past = past_;
  }
  const size_t before = events->size();
  if (!link || !link->Poll(events)) return false;
  for (size_t i = before; i < events->size(); ++i) {
    if (auto* down = std::get_if<LinkDown>(&(*events)[i])) down->generation += past;
  }
  return true;
}

void LinkSlot::MoveIn(Tenant tenant) {
  lanes_ = std::move(tenant.lanes);
  name_.store(tenant.name, std::memory_order_release);
  {
    absl::MutexLock lock(&link_mutex_);
    link_ = std::move(tenant.link);
  }
  SetPhase(Phase::kServing);
}

void LinkSlot::SetPhase(Phase phase) {
  phase_.store(phase, std::memory_order_release);
  absl::MutexLock lock(&link_mutex_);
  ++past_;
}

void LinkSlot::Leave(absl::Time lost_at) {
  lost_at_ = lost_at;
  SetPhase(Phase::kLeaving);
}

void LinkSlot::Stay() { SetPhase(Phase::kServing); }

LinkSlot::Tenant LinkSlot::Tick(absl::Time now) {
  const auto all = [this](auto holds) { return std::all_of(lanes_.begin(), lanes_.end(), holds); };
  if (phase() == Phase::kLeaving &&
      (now >= lost_at_ || all([](const GrpcLink* lane) { return lane->idle(); }))) {
    SetPhase(Phase::kStopping);
    for (GrpcLink* lane : lanes_) lane->Stop();
  }
  // What it still has to tell, its end above all, is waited for.
  if (phase() != Phase::kStopping ||
      !all([](const GrpcLink* lane) { return lane->stopped() && !lane->has_events(); })) {
    return {};
  }
  Tenant gone{.lanes = std::exchange(lanes_, {})};
  {
    absl::MutexLock lock(&link_mutex_);
    past_ += link_->generation();
    gone.link = std::exchange(link_, nullptr);
  }
  SetPhase(Phase::kEmpty);
  return gone;
}

}  // namespace switchyard::expertwire
