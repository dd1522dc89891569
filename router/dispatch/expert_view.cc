#include "router/dispatch/expert_view.h"

#include <algorithm>
#include <utility>

namespace switchyard::router {
ExpertView::ExpertView(const ModelSpec& spec, const expertwire::LinkSet& links,
                       absl::Duration patience, absl::Time (*now)())
    : links_(links),
      moe_layers_(placement::GridOf(spec).moe_layers),
      experts_(static_cast<size_t>(spec.experts.count)),
      patience_(patience),
      now_(now),
      map_(moe_layers_, spec.experts.count),
      orphaned_(moe_layers_.size() * experts_, absl::InfiniteFuture()),
      gone_(orphaned_.size(), 0),
      gone_count_(moe_layers_.size(), 0) {
  NoteOrphans(now_());
}

bool ExpertView::Refresh() {
  bool same = !TakePlacement() && generations_.size() == links_.links().size();
  generations_.resize(links_.links().size());
  for (size_t i = 0; i < generations_.size(); ++i) {
    const uint64_t now = links_.links()[i]->generation();
    same = same && generations_[i] == now;
    generations_[i] = now;
  }
  if (same) return false;
  map_ = MapOf(links_.links().first(generations_.size()), moe_layers_, static_cast<int>(experts_),
               placement_.get());
  NoteOrphans(now_());
  return true;
}

// ---- the placement ----

void ExpertView::Use(std::shared_ptr<const placement::PlacementIndex> placement) {
  const uint64_t epoch = placement->epoch();
  {
    absl::MutexLock lock(&mutex_);
    next_ = std::move(placement);
  }
  next_epoch_.store(epoch);
}

// Whether there is another.
bool ExpertView::TakePlacement() {
  if (next_epoch_.load() == (placement_ == nullptr ? 0 : placement_->epoch())) return false;
  absl::MutexLock lock(&mutex_);
  placement_ = next_;
  before_placement_ = newest_;
  older_jobs_ = planned_jobs_;
  return true;
}

// Whoever starts a job counts it first and then looks for a placement; here it is the other way
// round. So where none is open, the next will be planned by what was handed over last.
uint64_t ExpertView::epoch_in_use() const {
  const uint64_t next = next_epoch_.load();
  return open_jobs_.load() == 0 ? next : epoch_in_use_.load();
}

void ExpertView::OnPlanned(MoeTicket ticket) {
  newest_ = ticket;
  ++planned_jobs_;
  TellEpoch();
}

void ExpertView::OnOver(MoeTicket ticket) {
  --planned_jobs_;
  if (ticket <= before_placement_) --older_jobs_;
  TellEpoch();
}

void ExpertView::TellEpoch() {
  open_jobs_.store(planned_jobs_);
  if (placement_ == nullptr || older_jobs_ > 0) return;
  if (epoch_in_use_.load() != placement_->epoch()) epoch_in_use_.store(placement_->epoch());
}

// ---- what nobody holds ----

void ExpertView::NoteOrphans(absl::Time now) {
  for (size_t layer = 0; layer < moe_layers_.size(); ++layer) {
    if (!moe_layers_[layer]) continue;
    const auto first = map_.first(static_cast<int>(layer));
    for (size_t e = 0; e < experts_; ++e) {
      const size_t i = layer * experts_ + e;
      if (first[e] == ExpertMap::kNone) {
        orphaned_[i] = std::min(orphaned_[i], now);
        if (!gone_[i]) next_gone_ = std::min(next_gone_, orphaned_[i] + patience_);
        continue;
      }
      orphaned_[i] = absl::InfiniteFuture();
      gone_count_[layer] -= gone_[i];
      gone_[i] = 0;
    }
  }
}

void ExpertView::FindGone(absl::Time now) {
  if (now < next_gone_) return;
  next_gone_ = absl::InfiniteFuture();
  for (size_t i = 0; i < gone_.size(); ++i) {
    if (gone_[i] || orphaned_[i] == absl::InfiniteFuture()) continue;
    if (const absl::Time at = orphaned_[i] + patience_; now < at) {
      next_gone_ = std::min(next_gone_, at);
      continue;
    }
    gone_[i] = 1;
    ++gone_count_[i / experts_];
  }
}

std::span<const uint8_t> ExpertView::Gone(int layer, absl::Time now) {
  FindGone(now);
  const auto at = static_cast<size_t>(layer);
  if (gone_count_[at] == 0) return {};
  return std::span(gone_).subspan(at * experts_, experts_);
}

std::string ExpertView::Missing() const {
  return MapOf(links_.links(), moe_layers_, static_cast<int>(experts_)).Missing();
}

}  // namespace switchyard::router
