#include "services/expertwire/two_lanes.h"

#include <algorithm>
#include <utility>

namespace switchyard::expertwire {
namespace {

// Appends what came over one lane. An end concerns all that was sent before it, over either.
bool PollLane(ExpertLink& lane, const ExpertLink& other, std::vector<LinkEvent>* events) {
  const size_t before = events->size();
  const bool any = lane.Poll(events);
  for (size_t i = before; i < events->size(); ++i) {
    if (auto* down = std::get_if<LinkDown>(&(*events)[i])) down->generation += other.generation();
  }
  return any;
}

}  // namespace

LinkState TwoLanes::state() const {
  const LinkState quick = quick_->state(), bulk = bulk_->state();
  for (const LinkState either :
       {LinkState::kRefused, LinkState::kConnecting, LinkState::kDraining}) {
    if (quick == either || bulk == either) return either;
  }
  return LinkState::kUp;
}

absl::Status TwoLanes::why() const {
  const absl::Status quick = quick_->why();
  return quick.ok() || bulk_->state() == LinkState::kRefused ? bulk_->why() : quick;
}

LinkStats TwoLanes::stats() const {
  const LinkStats a = quick_->stats(), b = bulk_->stats();
  return {.frames_sent = a.frames_sent + b.frames_sent,
          .frames_received = a.frames_received + b.frames_received,
          .bytes_sent = a.bytes_sent + b.bytes_sent,
          .bytes_received = a.bytes_received + b.bytes_received,
          .connects = a.connects + b.connects,
          .suspicions = a.suspicions + b.suspicions,
          .stale_answers = a.stale_answers + b.stale_answers,
          .shares_memory = a.shares_memory && b.shares_memory};
}

absl::Status TwoLanes::Send(Call part) {
  const bool bulk = std::max(part.payload.bytes(), part.answer_bytes) > kBulkBytes;
  return (bulk ? *bulk_ : *quick_).Send(std::move(part));
}

void TwoLanes::Cancel(uint64_t call_id, uint32_t attempt) {
  quick_->Cancel(call_id, attempt);
  bulk_->Cancel(call_id, attempt);
}

bool TwoLanes::Poll(std::vector<LinkEvent>* events) {
  const bool quick = PollLane(*quick_, *bulk_, events);
  return PollLane(*bulk_, *quick_, events) || quick;
}

}  // namespace switchyard::expertwire
