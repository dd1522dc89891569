#include "router/dispatch/link_dispatcher.h"

#include <algorithm>
#include <cstring>
#include <set>
#include <utility>

#include "absl/strings/str_join.h"
#include "services/base/check.h"
#include "services/base/logging.h"
#include "services/base/text.h"

namespace switchyard::router {
namespace {

namespace pb = expertwire::pb;
using expertwire::Answer;
using expertwire::Call;
using expertwire::ExpertLink;
using expertwire::RowBuffer;

// Rows are gathered and combined on the pool in pieces of this many elements.
constexpr int64_t kElementsAPiece = 32768;
// How often parked pairs and late parts without a replica are looked at, beside changes of the map.
constexpr absl::Duration kLookEvery = absl::Milliseconds(20);
// When a part is first looked at, if it is not late before: silence is found by then.
constexpr absl::Duration kLookForSilent = absl::Milliseconds(100);
// Taken for the 99th percentile of latency while too few are known.
constexpr absl::Duration kUnknownLatency = absl::Milliseconds(100);
// What is out for so many times the 99th percentile is stuck.
constexpr int kStuckTimes = 20;
// Rows under which so many streams broke are given up: it may be they that break them.
constexpr uint32_t kFallsMax = 4;

// Until parked pairs are looked at again, longer each time that somebody took them in vain.
absl::Duration LookAfter(uint32_t depth) {
  return std::min(kLookEvery * (1 << std::min(depth, 6u)), absl::Seconds(1));
}

uint64_t Micros(absl::Duration d) {
  return static_cast<uint64_t>(std::max<int64_t>(0, absl::ToInt64Microseconds(d)));
}

void Count(std::atomic<uint64_t>& counter, uint64_t n = 1) {
  counter.fetch_add(n, std::memory_order_relaxed);
}

uint64_t Read(const std::atomic<uint64_t>& counter) {
  return counter.load(std::memory_order_relaxed);
}

}  // namespace

struct LinkDispatcher::LinkRecord {
  std::string worker;     // that this is of; of the engine thread
  LinkHealth health;      // of the engine thread
  uint64_t rows_out = 0;  // of the engine thread
  std::atomic<bool> ejected = false;
  std::atomic<bool> stuck = false;  // as Stuck says
  std::atomic<uint64_t> rows = 0, lost_parts = 0, stale = 0, ejections = 0;
  expertwire::Histogram latency_us, wire_us;

  // Begins anew for another worker. What is out stays: it will leave.
  void BeginFor(const std::string& name) {
    worker = name;
    health = {};
    ejected = stuck = false;
    rows = lost_parts = stale = ejections = 0;
    latency_us.Reset();
    wire_us.Reset();
  }
  void Publish(absl::Time now) {
    ejected.store(health.Ejected(now), std::memory_order_relaxed);
    ejections.store(health.ejections(), std::memory_order_relaxed);
  }
};

LinkDispatcher::LinkDispatcher(const ModelSpec& spec, DType wire_dtype, expertwire::LinkSet& links,
                               kernels::ThreadPool& pool, const DispatchOptions& options)
    : hidden_(spec.hidden),
      experts_(spec.experts.count),
      experts_per_group_(spec.experts_per_group()),
      dtype_(wire_dtype),
      options_(options),
      layers_(spec.num_layers()),
      links_(links),
      pool_(pool),
      view_(spec, links, options.patience, options.now),
      hints_(links),
      expert_rows_(static_cast<size_t>(spec.num_layers()) * spec.experts.count) {
  Refresh();
}

LinkDispatcher::~LinkDispatcher() = default;

// ---- who may be asked ----

// Links that came since. Those that are known keep their index, though another worker may have
// taken the place of one that is gone.
void LinkDispatcher::MeetLinks() {
  const auto links = links_.links();
  for (size_t i = known_.load(std::memory_order_relaxed); i < links.size(); ++i) {
    records_[i] = std::make_unique<LinkRecord>();
    known_.store(i + 1, std::memory_order_release);
  }
  max_part_bytes_.resize(links.size());
  for (size_t i = 0; i < links.size(); ++i) {
    max_part_bytes_[i] = links[i]->max_part_bytes();
    const std::string& name = links[i]->name();
    const bool gone = links[i]->state() == expertwire::LinkState::kGone;
    if (gone || record(i).worker != name) record(i).BeginFor(name);
  }
}

void LinkDispatcher::Refresh() {
  if (!view_.Refresh()) return;
  MeetLinks();
  hints_.Refresh(view_.links());
  for (auto& [ticket, job] : jobs_) {
    for (size_t p = 0; p < job->plan.part_count; ++p) {
      if (job->parts[p].state == Job::State::kParked) {
        job->parts[p].look_at = job->look_at = absl::InfinitePast();
      }
    }
  }
}

std::span<const uint8_t> LinkDispatcher::Gone(int layer) {
  Refresh();
  return view_.Gone(layer, options_.now());
}

Standing LinkDispatcher::StandingOf(size_t link, absl::Time now) const {
  switch (links_.links()[link]->state()) {
    case expertwire::LinkState::kUp:
      return record(link).health.Ejected(now) ? Standing::kSuspect : Standing::kWell;
    case expertwire::LinkState::kDraining:
      return Standing::kSuspect;
    default:
      return Standing::kNever;
  }
}

void LinkDispatcher::ReadStandings(absl::Time now) {
  standings_.resize(view_.links());
  for (size_t i = 0; i < standings_.size(); ++i) standings_[i] = StandingOf(i, now);
}

// Of the pairs in wanted_, by standings_.
std::span<const int16_t> LinkDispatcher::ChooseOwners(const Job& job) {
  wanted_rows_.assign(static_cast<size_t>(experts_), 0);
  for (const WantedPair& w : wanted_) ++wanted_rows_[static_cast<size_t>(job.moe.experts[w.pair])];
  busy_.resize(view_.links());
  for (size_t i = 0; i < busy_.size(); ++i) busy_[i] = record(i).rows_out;
  ChooseReplicas(view_.map(),
                 {.layer = job.moe.layer,
                  .experts_per_group = static_cast<uint32_t>(experts_per_group_),
                  .seed = (next_ticket_ << 8) + job.attempts,
                  .rows = wanted_rows_,
                  .standings = standings_,
                  .busy = busy_},
                 &given_, &owner_);
  return owner_;
}

PlanInput LinkDispatcher::InputOf(const Job& job) const {
  return {.tokens = job.moe.tokens,
          .top_k = job.moe.top_k,
          .experts = job.moe.experts,
          .weights = job.moe.weights,
          .experts_per_group = static_cast<uint32_t>(experts_per_group_),
          .hidden = static_cast<uint32_t>(hidden_),
          .dtype = dtype_,
          .max_part_bytes = max_part_bytes_};
}

void LinkDispatcher::PlanFirst(Job& job) {
  PlanInput input = InputOf(job);
  WantAll(input, &wanted_);
  const absl::Time now = options_.now();
  if (const auto gone = view_.Gone(job.moe.layer, now); !gone.empty()) {  // nobody waits for them
    std::erase_if(wanted_, [&](const WantedPair& w) {
      return gone[static_cast<size_t>(job.moe.experts[w.pair])] != 0;
    });
  }
  if (view_.map().replicated(job.moe.layer)) {
    ReadStandings(now);
    input.owner = ChooseOwners(job);
  } else {
    input.owner = view_.map().first(job.moe.layer);
  }
  PlanPairs(input, wanted_, &job.plan);
  CountExperts(job);
}

// Demand, not traffic: a worker whose rows are sent again must not make its experts look hot.
void LinkDispatcher::CountExperts(const Job& job) {
  const size_t layer_base = static_cast<size_t>(job.moe.layer) * static_cast<size_t>(experts_);
  for (const PlannedPart& part : job.plan.used()) {
    for (const expertwire::Segment& s : part.segments) {
      Count(expert_rows_[layer_base + s.expert], s.count);
    }
    for (const WantedPair& w : part.parked) {
      Count(expert_rows_[layer_base + static_cast<size_t>(job.moe.experts[w.pair])]);
    }
  }
}

void LinkDispatcher::CountComputed(int layer, std::span<const int32_t> experts) {
  const size_t base = static_cast<size_t>(layer) * static_cast<size_t>(experts_);
  for (const int32_t expert : experts) {
    if (expert != kNoExpert) Count(expert_rows_[base + static_cast<size_t>(expert)]);
  }
}

// Plans what is wanted again of a part onto others than those that it, or one that it was planned
// for, was sent to in vain; of a parked one onto any that it is not out at. Returns the first new
// part; of a part that is not lost none are new where nobody can take anything.
size_t LinkDispatcher::PlanAgain(Job& job, size_t p, absl::Time now) {
  const size_t first = job.plan.part_count;
  ReadStandings(now);
  bool in_vain = true;  // until it was parked
  for (auto at = static_cast<int32_t>(p); at >= 0; at = job.parts[static_cast<size_t>(at)].parent) {
    const Job::Part& part = job.parts[static_cast<size_t>(at)];
    const int link = job.plan.parts[static_cast<size_t>(at)].link;
    if (link == PlannedPart::kNobody) {
      in_vain = false;
      continue;
    }
    const auto i = static_cast<size_t>(link);
    const bool same = in_vain && part.generation == links_.links()[i]->generation();
    if (same || part.state == Job::State::kOpen) standings_[i] = Standing::kNever;
  }
  job.WantAgain(p, &wanted_);
  PlanInput input = InputOf(job);
  input.owner = ChooseOwners(job);
  PlanPairs(input, wanted_, &job.plan);
  const bool nobody =
      job.plan.part_count == first + 1 && job.plan.parts[first].link == PlannedPart::kNobody;
  if (nobody && job.parts[p].state != Job::State::kFailed) job.plan.part_count = first;
  return first;
}

// ---- a job's way ----

MoeTicket LinkDispatcher::Start(const MoeJob& moe) {
  SY_CHECK(moe.layer >= 0 && moe.layer < layers_);
  SY_CHECK(moe.x.dtype == dtype_ && moe.top_k > 0);
  view_.OnBegin();
  Refresh();
  std::unique_ptr<Job> job;
  if (idle_jobs_.empty()) {
    job = std::make_unique<Job>();
  } else {
    job = std::move(idle_jobs_.back());
    idle_jobs_.pop_back();
  }
  job->Begin(moe);
  PlanFirst(*job);
  const MoeTicket ticket = next_ticket_++;
  Track(ticket, *job, 0, -1, options_.now());
  jobs_.emplace(ticket, std::move(job));
  view_.OnPlanned(ticket);
  return ticket;
}

// Sends the plan's parts from `first` on, as children of `parent`.
void LinkDispatcher::Track(MoeTicket ticket, Job& job, size_t first, int32_t parent,
                           absl::Time now) {
  job.Track(first, parent);
  for (size_t p = first; p < job.plan.part_count; ++p) {
    Job::Part& part = job.parts[p];
    part.attempt = job.attempts;
    part.since = now;
    if (part.state == Job::State::kOpen) {
      Send(ticket, job, p, now);
      continue;
    }
    if (!part.waits) Count(parked_rows_, job.plan.parts[p].parked.size());
    part.waits = true;
    part.look_at = now + std::min(LookAfter(part.depth), options_.patience - part.waited);
    job.look_at = std::min(job.look_at, part.look_at);
  }
  ++job.attempts;
}

RowBuffer LinkDispatcher::Gather(const MoeJob& moe, const PlannedPart& part, bool may_borrow) {
  const size_t row_bytes = static_cast<size_t>(hidden_) * SizeOf(dtype_);
  const size_t rows = part.tokens.size();
  const auto* x = static_cast<const std::byte*>(moe.x.data);
  // Rows ascend without repeating: if the last one's distance fits they are consecutive.
  const bool consecutive = part.tokens.back() - part.tokens.front() + 1 == rows;
  if (may_borrow && consecutive && moe.x.stride == hidden_) {
    return RowBuffer::Borrow(x + part.tokens.front() * row_bytes, rows * row_bytes);
  }
  RowBuffer out = buffers_.Take(rows * row_bytes);
  const size_t stride = static_cast<size_t>(moe.x.stride) * SizeOf(dtype_);
  pool_.ParallelFor(static_cast<int64_t>(rows), std::max<int64_t>(1, kElementsAPiece / hidden_),
                    [&](int64_t begin, int64_t end) {
                      for (int64_t r = begin; r < end; ++r) {
                        std::memcpy(out.mutable_data() + static_cast<size_t>(r) * row_bytes,
                                    x + part.tokens[static_cast<size_t>(r)] * stride, row_bytes);
                      }
                    });
  return out;
}

void LinkDispatcher::Send(MoeTicket ticket, Job& job, size_t p, absl::Time now) {
  const PlannedPart& part = job.plan.parts[p];
  LinkRecord& peer = record(static_cast<size_t>(part.link));
  ExpertLink& link = *links_.links()[static_cast<size_t>(part.link)];
  Call call = expertwire::EmptyCall(buffers_);
  call.call_id = ticket;
  call.attempt = job.parts[p].attempt;
  call.part = static_cast<uint32_t>(p);
  call.last = part.last;
  call.layer = job.moe.layer;
  call.deadline = job.moe.deadline;
  call.priority = job.moe.priority;
  call.dtype = dtype_;
  call.rows = static_cast<uint32_t>(part.tokens.size());
  call.hidden = static_cast<uint32_t>(hidden_);
  call.answer_bytes = part.layout.bytes(call.hidden, dtype_);
  call.payload = Gather(job.moe, part, link.borrows_rows());
  const uint64_t pairs = part.pairs.size();
  peer.rows_out += pairs;
  call.segments.assign(part.segments.begin(), part.segments.end());
  call.row_index.assign(part.row_index.begin(), part.row_index.end());
  call.weights.assign(part.weights.begin(), part.weights.end());
  job.parts[p].generation = link.generation();
  job.parts[p].probe = peer.health.OnSend(now);
  const absl::Duration late =
      std::max(options_.hedge_after_min, 2 * latency_.P99(pairs, kUnknownLatency));
  job.parts[p].late_at = now + late;
  job.parts[p].stuck_at = now + std::max(late, StuckAfter(pairs));
  job.parts[p].look_at = now + std::min(late, kLookForSilent);
  job.look_at = std::min(job.look_at, job.parts[p].look_at);
  if (absl::Status status = link.Send(std::move(call)); !status.ok()) {
    log::Debug("layer {}: {}", job.moe.layer, ToStd(status.message()));
    return Fail(job, p);
  }
  Count(peer.rows, pairs);
  budget_.OnRows(pairs);
}

absl::Duration LinkDispatcher::StuckAfter(uint64_t pairs) const {
  return std::clamp(kStuckTimes * latency_.P99(pairs, absl::InfiniteDuration()),
                    options_.stuck_after_min, options_.stuck_after_max);
}

// Its part is out no more.
void LinkDispatcher::LeaveLink(Job& job, size_t p) {
  const PlannedPart& part = job.plan.parts[p];
  LinkRecord& peer = record(static_cast<size_t>(part.link));
  peer.rows_out -= part.pairs.size();
  if (job.parts[p].probe != 0) peer.health.OnProbeOver(job.parts[p].probe);
}

void LinkDispatcher::Fail(Job& job, size_t p) {
  LeaveLink(job, p);
  job.OnFailed(p);
  Count(record(static_cast<size_t>(job.plan.parts[p].link)).lost_parts);
}

void LinkDispatcher::OnBadLink(size_t link, absl::Time now) {
  record(link).health.OnBad(now);
  record(link).Publish(now);
}

void LinkDispatcher::Hint(int layer, std::span<const int32_t> experts) {
  hints_.Send(view_.map(), layer, experts);
}

// ---- what comes back ----

bool LinkDispatcher::Fits(const Job& job, size_t p, const Answer& answer) const {
  const PlannedPart& part = job.plan.parts[p];
  return answer.status.size() == part.segments.size() && answer.sums == part.layout.sums &&
         answer.rows == part.layout.rows && answer.hidden == static_cast<uint32_t>(hidden_) &&
         answer.dtype == dtype_;
}

void LinkDispatcher::OnAnswer(int link, Answer answer, absl::Time now) {
  LinkRecord& peer = record(static_cast<size_t>(link));
  peer.stuck.store(false, std::memory_order_relaxed);
  const auto found = jobs_.find(answer.call_id);
  Job* job = found == jobs_.end() ? nullptr : found->second.get();
  const size_t p = answer.part;
  if (job == nullptr || p >= job->plan.part_count || job->plan.parts[p].link != link ||
      job->parts[p].attempt != answer.attempt || job->parts[p].state != Job::State::kOpen) {
    Count(peer.stale);
    return;
  }
  const absl::Duration latency = now - job->parts[p].since;
  peer.latency_us.Add(Micros(latency));
  peer.wire_us.Add(Micros(latency) -
                   std::min(Micros(latency), answer.queue_us + answer.compute_us));
  // One that hung does not make the next look as if it were in time; where all are slower than they
  // were the percentile follows nevertheless.
  latency_.Add(job->plan.parts[p].pairs.size(),
               std::min(latency, job->parts[p].stuck_at - job->parts[p].since));
  const bool any_ok =
      std::find(answer.status.begin(), answer.status.end(), pb::OK) != answer.status.end();
  const bool fits = Fits(*job, p, answer);
  if (!answer.error.empty() || (any_ok && !fits)) {
    log::Warning(
        "worker {}, layer {}: {}", links_.links()[static_cast<size_t>(link)]->name(),
        job->moe.layer,
        answer.error.empty() ? "an answer of another shape than was asked for" : answer.error);
  }
  if (!any_ok || !fits) return Fail(*job, p);
  LeaveLink(*job, p);
  if (job->Settled(p)) {  // a replica was faster, or what it was to replace came after all
    job->parts[p].state = Job::State::kAnswered;
    Count(peer.stale);
    return;
  }
  const int32_t parent = job->parts[p].parent;
  if (parent >= 0 && job->parts[static_cast<size_t>(parent)].state == Job::State::kOpen) {
    Count(hedges_won_);
    const int late = job->plan.parts[static_cast<size_t>(parent)].link;
    record(static_cast<size_t>(late)).health.OnBeaten(now);
    record(static_cast<size_t>(late)).Publish(now);
  }
  if (!job->parts[p].again || job->parts[p].probe != 0) {
    peer.health.OnGood();
    if (peer.ejected.load(std::memory_order_relaxed)) peer.Publish(now);
  }
  if (!job->OnAnswered(p, std::move(answer))) Count(peer.lost_parts);
}

// News of a stream that ended while nothing ran must not hit what was sent over the next one.
void LinkDispatcher::OnDown(int link, uint64_t generation, absl::Time now) {
  OnBadLink(static_cast<size_t>(link), now);  // while a probe is known to be out
  record(static_cast<size_t>(link)).stuck.store(false, std::memory_order_relaxed);
  for (auto& [ticket, job] : jobs_) {
    for (size_t p = 0; p < job->plan.part_count; ++p) {
      const bool open = job->parts[p].state == Job::State::kOpen;
      if (open && job->plan.parts[p].link == link && job->parts[p].generation <= generation) {
        ++job->parts[p].falls;
        Fail(*job, p);
      }
    }
  }
}

void LinkDispatcher::PollLinks() {
  events_.clear();
  if (!links_.Poll(&events_)) return;
  const absl::Time now = options_.now();
  for (expertwire::LinkSet::Event& event : events_) {
    if (static_cast<size_t>(event.link) >= view_.links()) continue;  // was sent nothing yet
    if (auto* answer = std::get_if<Answer>(&event.event)) {
      OnAnswer(event.link, std::move(*answer), now);
    } else {
      OnDown(event.link, std::get<expertwire::LinkDown>(event.event).generation, now);
    }
  }
}

// ---- what fails, is late, or waits ----

// Does what is due for a job's parts, also for those that come of it.
void LinkDispatcher::Attend(MoeTicket ticket, Job& job, absl::Time now) {
  job.look_at = absl::InfiniteFuture();
  for (size_t p = 0; p < job.plan.part_count && !job.done(); ++p) {
    if (job.Settled(p)) job.parts[p].look_at = absl::InfiniteFuture();
    if (job.parts[p].look_at <= now) AttendPart(ticket, job, p, now);
    job.look_at = std::min(job.look_at, job.parts[p].look_at);
  }
}

void LinkDispatcher::AttendPart(MoeTicket ticket, Job& job, size_t p, absl::Time now) {
  Job::Part& part = job.parts[p];
  part.look_at = absl::InfiniteFuture();
  switch (part.state) {
    case Job::State::kOpen:
      return MayHedge(ticket, job, p, now);
    case Job::State::kParked:
      return TryParked(ticket, job, p, now);
    case Job::State::kFailed:
      if (!part.again) Retry(ticket, job, p, now);
      return;
    case Job::State::kAnswered:
      return;
  }
}

void LinkDispatcher::Retry(MoeTicket ticket, Job& job, size_t p, absl::Time now) {
  if (job.parts[p].falls >= kFallsMax) {
    if (!job.GiveUp(p)) {
      job.parts[p].look_at = now + kLookEvery;  // another may answer still
      return;
    }
    log::Error("layer {}: rows are given up: the streams of {} workers broke that computed them",
               job.moe.layer, job.parts[p].falls);
    return;
  }
  const size_t first = PlanAgain(job, p, now);
  Count(retried_rows_, wanted_.size());
  Track(ticket, job, first, static_cast<int32_t>(p), now);
}

void LinkDispatcher::TryParked(MoeTicket ticket, Job& job, size_t p, absl::Time now) {
  Job::Part& part = job.parts[p];
  part.waited += now - part.since;
  part.since = now;
  const bool over = part.waited >= options_.patience;
  if (!over || part.depth == 0) {  // who takes it in vain over and over does not count
    const size_t first = PlanAgain(job, p, now);
    if (first < job.plan.part_count) {
      part.state = Job::State::kFailed;
      return Track(ticket, job, first, static_cast<int32_t>(p), now);
    }
  }
  if (over && job.GiveUp(p)) return;
  part.look_at = now + LookAfter(part.depth);
}

// A part may be late. One whose worker is silent, or that is stuck, is sent elsewhere in any case;
// one that is merely slow within the budget, and not while its worker says that it computes. A
// probe has no such credit: it must not cost its job more than a moment. Of one that is stuck the
// rows that nobody else can take wait as those do that nobody holds.
void LinkDispatcher::MayHedge(MoeTicket ticket, Job& job, size_t p, absl::Time now) {
  Job::Part& part = job.parts[p];
  part.look_at = now + kLookEvery;
  const auto link = static_cast<size_t>(job.plan.parts[p].link);
  const bool probe = part.probe != 0;
  const bool silent = links_.links()[link]->suspect();
  const bool lost = silent || now >= part.stuck_at;
  if (silent) OnBadLink(link, now);
  if (const absl::Time end = part.since + options_.stuck_after_max; now >= end) {
    record(link).stuck.store(true, std::memory_order_relaxed);
    part.given_up = now >= end + (options_.patience - part.waited);
  }
  if (!lost && (!options_.hedge || now < part.late_at ||
                (!probe && links_.links()[link]->Computing(ticket, part.attempt)))) {
    return;
  }
  if (part.again) return;
  const size_t first = PlanAgain(job, p, now);
  if (first == job.plan.part_count) {
    if (part.given_up) job.GiveUp(p);
    return;
  }
  const auto added = job.plan.used().subspan(first);
  const bool whole = std::none_of(added.begin(), added.end(), [](const PlannedPart& q) {
    return q.link == PlannedPart::kNobody;
  });
  if (!lost && (!whole || (!probe && !budget_.Take(wanted_.size())))) {
    job.plan.part_count = first;
    return;
  }
  if (lost) OnBadLink(link, now);
  Count(hedged_rows_, wanted_.size());
  Track(ticket, job, first, static_cast<int32_t>(p), now);
}

// Tells each worker once that the parts it still has are not wanted any more.
void LinkDispatcher::End(MoeTicket ticket, Job& job) {
  for (size_t p = 0; p < job.plan.part_count; ++p) {
    if (job.parts[p].state != Job::State::kOpen) continue;
    const int link = job.plan.parts[p].link;
    links_.links()[static_cast<size_t>(link)]->Cancel(ticket, job.parts[p].attempt);
    for (size_t q = p; q < job.plan.part_count; ++q) {
      if (job.parts[q].state != Job::State::kOpen || job.plan.parts[q].link != link ||
          job.parts[q].attempt != job.parts[p].attempt) {
        continue;
      }
      LeaveLink(job, q);
      job.parts[q].state = Job::State::kFailed;
      if (!job.Settled(q)) Count(record(static_cast<size_t>(link)).lost_parts);
    }
  }
}

void LinkDispatcher::Abandon(MoeTicket ticket) {
  const auto found = jobs_.find(ticket);
  SY_CHECK(found != jobs_.end());
  std::unique_ptr<Job> job = std::move(found->second);
  jobs_.erase(found);
  End(ticket, *job);
  Recycle(std::move(job));
  view_.OnOver(ticket);
}

void LinkDispatcher::Recycle(std::unique_ptr<Job> job) {
  for (Job::Part& part : job->parts) part.answer.payload = RowBuffer();  // back to its pool
  idle_jobs_.push_back(std::move(job));
}

bool LinkDispatcher::Finished(MoeTicket ticket) {
  const auto found = jobs_.find(ticket);
  SY_CHECK(found != jobs_.end());
  Job& running = *found->second;
  if (!running.done()) {
    PollLinks();
    if (!running.done()) {
      Refresh();
      const absl::Time now = options_.now();
      if (running.look_at <= now) Attend(ticket, running, now);
      if (!running.done() && now >= running.moe.deadline) {
        End(ticket, running);
        running.GiveUpAll();
      }
    }
    if (!running.done()) return false;
  }
  std::unique_ptr<Job> job = std::move(found->second);
  jobs_.erase(found);
  End(ticket, *job);
  Combine(*job);
  Recycle(std::move(job));
  view_.OnOver(ticket);
  return true;
}

void LinkDispatcher::Wait(absl::Time until) {
  for (const auto& [ticket, job] : jobs_) {
    until = std::min({until, job->moe.deadline, job->look_at});
  }
  links_.Wait(until);
}

void LinkDispatcher::Combine(Job& job) {
  const int64_t tokens = job.moe.tokens;
  const CombineTerms terms{hidden_, experts_per_group_, dtype_};
  pool_.ParallelFor(tokens,
                    std::max<int64_t>(1, kElementsAPiece / (int64_t{hidden_} * job.moe.top_k)),
                    [&](int64_t begin, int64_t end) {
                      for (int64_t t = begin; t < end; ++t) CombineToken(job, terms, t);
                    });
  uint64_t lost = 0;
  for (int64_t t = 0; t < tokens; ++t) lost += job.moe.lost[t] != 0;
  if (lost == 0) return;
  Count(lost_rows_, lost);
  std::set<std::string> names;
  for (size_t p = 0; p < job.plan.part_count; ++p) {
    if (job.parts[p].state != Job::State::kFailed || job.plan.parts[p].link < 0) continue;
    names.insert(links_.links()[static_cast<size_t>(job.plan.parts[p].link)]->name());
  }
  log::Warning("layer {}: {} of {} rows lost{}{}", job.moe.layer, lost, tokens,
               names.empty() ? "" : " with worker ", absl::StrJoin(names, ", "));
}

// ---- what is told ----

std::string LinkDispatcher::Missing() const {
  std::string out = view_.Missing();
  if (out.empty()) return out;
  for (const auto& link : links_.links()) {
    if (absl::Status why = link->why(); !why.ok()) {
      out += fmt::format("\nworker {} is {}: {}", link->name(), Name(link->state()),
                         ToStd(why.message()));
    }
  }
  return out;
}

std::vector<LinkReport> LinkDispatcher::Links() const {
  std::vector<LinkReport> out;
  const size_t known = known_.load(std::memory_order_acquire);
  const auto links = links_.links();
  for (size_t i = 0; i < links.size(); ++i) {
    const ExpertLink& link = *links[i];
    LinkReport& report = out.emplace_back();
    report.name = link.name();
    report.state = link.state();
    report.why = std::string(link.why().message());
    report.wire = link.stats();
    report.stale_answers = report.wire.stale_answers;
    if (i >= known) continue;  // it came after the last rows did, and was sent nothing yet
    const LinkRecord& r = record(i);
    report.rows = Read(r.rows);
    report.lost_parts = Read(r.lost_parts);
    report.stale_answers += Read(r.stale);
    report.ejections = Read(r.ejections);
    report.hints = hints_.sent(i);
    report.ejected = r.ejected.load(std::memory_order_relaxed);
    report.latency_us = r.latency_us.Read();
    report.wire_us = r.wire_us.Read();
  }
  return out;
}

bool LinkDispatcher::Stuck(size_t link) const {
  return link < known_.load(std::memory_order_acquire) &&
         record(link).stuck.load(std::memory_order_relaxed);
}

DispatchReport LinkDispatcher::Report() const {
  return {.lost_rows = Read(lost_rows_),
          .retried_rows = Read(retried_rows_),
          .hedged_rows = Read(hedged_rows_),
          .hedges_won = Read(hedges_won_),
          .parked_rows = Read(parked_rows_)};
}

std::vector<uint64_t> LinkDispatcher::ExpertRows() const {
  std::vector<uint64_t> out;
  out.reserve(expert_rows_.size());
  for (const auto& rows : expert_rows_) out.push_back(Read(rows));
  return out;
}

}  // namespace switchyard::router
