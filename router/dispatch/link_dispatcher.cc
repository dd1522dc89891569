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
// Rows are combined a slice at a time, so that what is between lies on the stack.
constexpr int64_t kSlice = 1024;

std::vector<bool> MoeLayers(const ModelSpec& spec) {
  std::vector<bool> layers;
  for (const LayerSpec& layer : spec.layers) layers.push_back(layer.moe);
  return layers;
}

uint64_t Micros(absl::Duration d) {
  return static_cast<uint64_t>(std::max<int64_t>(0, absl::ToInt64Microseconds(d)));
}

}  // namespace

struct LinkDispatcher::Job {
  enum class PartState : uint8_t { kOpen, kAnswered, kLost };

  MoeJob moe;
  DispatchPlan plan;
  std::vector<PartState> state;      // [parts]
  std::vector<Answer> answers;       // [parts]
  std::vector<absl::Time> sent;      // [parts]
  std::vector<uint64_t> generation;  // [parts]: of the link when the part was sent
  size_t open = 0;
};

struct LinkDispatcher::LinkCounters {
  std::atomic<uint64_t> rows = 0, lost_parts = 0, stale = 0;
  expertwire::Histogram latency_us, wire_us;
};

LinkDispatcher::LinkDispatcher(const ModelSpec& spec, DType wire_dtype, expertwire::LinkSet& links,
                               kernels::ThreadPool& pool)
    : hidden_(spec.hidden),
      experts_(spec.experts.count),
      top_k_(spec.gate.top_k),
      experts_per_group_(spec.experts_per_group()),
      dtype_(wire_dtype),
      moe_layers_(MoeLayers(spec)),
      links_(links),
      pool_(pool),
      expert_rows_(static_cast<size_t>(spec.num_layers()) * spec.experts.count) {
  for (const auto& link : links_.links()) {
    counters_.push_back(std::make_unique<LinkCounters>());
    max_part_bytes_.push_back(link->max_part_bytes());
  }
  RefreshMap();
}

LinkDispatcher::~LinkDispatcher() = default;

void LinkDispatcher::RefreshMap() {
  bool same = generations_.size() == links_.links().size();
  generations_.resize(links_.links().size());
  for (size_t i = 0; i < generations_.size(); ++i) {
    const uint64_t now = links_.links()[i]->generation();
    same = same && generations_[i] == now;
    generations_[i] = now;
  }
  if (!same) map_ = MapOf(links_.links(), moe_layers_, experts_);
}

MoeTicket LinkDispatcher::Start(const MoeJob& moe) {
  SY_CHECK(moe.layer >= 0 && static_cast<size_t>(moe.layer) < moe_layers_.size());
  SY_CHECK(moe.x.dtype == dtype_);
  RefreshMap();
  std::unique_ptr<Job> job;
  if (idle_jobs_.empty()) {
    job = std::make_unique<Job>();
  } else {
    job = std::move(idle_jobs_.back());
    idle_jobs_.pop_back();
  }
  job->moe = moe;
  MakePlan({.tokens = moe.tokens,
            .top_k = top_k_,
            .experts = moe.experts,
            .weights = moe.weights,
            .owner = map_.layer(moe.layer),
            .experts_per_group = static_cast<uint32_t>(experts_per_group_),
            .hidden = static_cast<uint32_t>(hidden_),
            .dtype = dtype_,
            .max_part_bytes = max_part_bytes_},
           &job->plan);
  const MoeTicket ticket = next_ticket_++;
  Send(ticket, *job);
  jobs_.emplace(ticket, std::move(job));
  return ticket;
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

void LinkDispatcher::Send(MoeTicket ticket, Job& job) {
  const auto parts = job.plan.used();
  job.state.assign(parts.size(), Job::PartState::kOpen);
  job.answers.resize(parts.size());
  job.sent.assign(parts.size(), absl::Now());
  job.generation.resize(parts.size());
  job.open = parts.size();
  const size_t layer_base = static_cast<size_t>(job.moe.layer) * experts_;
  for (size_t p = 0; p < parts.size(); ++p) {
    PlannedPart& part = parts[p];
    ExpertLink& link = *links_.links()[static_cast<size_t>(part.link)];
    Call call = expertwire::EmptyCall(buffers_);
    call.call_id = ticket;
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
    for (const expertwire::Segment& s : part.segments) {
      expert_rows_[layer_base + s.expert].fetch_add(s.count, std::memory_order_relaxed);
    }
    LinkCounters& counters = *counters_[static_cast<size_t>(part.link)];
    counters.rows.fetch_add(part.row_index.size(), std::memory_order_relaxed);
    call.segments.assign(part.segments.begin(), part.segments.end());
    call.row_index.assign(part.row_index.begin(), part.row_index.end());
    call.weights.assign(part.weights.begin(), part.weights.end());
    job.generation[p] = link.generation();
    if (absl::Status status = link.Send(std::move(call)); !status.ok()) {
      log::Debug("layer {}: {}", job.moe.layer, ToStd(status.message()));
      Settle(job, p, true);
    }
  }
}

void LinkDispatcher::Settle(Job& job, size_t part, bool lost) {
  job.state[part] = lost ? Job::PartState::kLost : Job::PartState::kAnswered;
  --job.open;
  if (!lost) return;
  const size_t link = static_cast<size_t>(job.plan.parts[part].link);
  counters_[link]->lost_parts.fetch_add(1, std::memory_order_relaxed);
}

void LinkDispatcher::OnAnswer(int link, Answer answer) {
  LinkCounters& counters = *counters_[static_cast<size_t>(link)];
  const auto found = jobs_.find(answer.call_id);
  Job* job = found == jobs_.end() ? nullptr : found->second.get();
  const size_t p = answer.part;
  if (job == nullptr || answer.attempt != 0 || p >= job->state.size() ||
      job->plan.parts[p].link != link || job->state[p] != Job::PartState::kOpen) {
    counters.stale.fetch_add(1, std::memory_order_relaxed);
    return;
  }
  const uint64_t latency_us = Micros(absl::Now() - job->sent[p]);
  counters.latency_us.Add(latency_us);
  counters.wire_us.Add(latency_us - std::min(latency_us, answer.queue_us + answer.compute_us));
  const PlannedPart& part = job->plan.parts[p];
  const bool any_ok =
      std::find(answer.status.begin(), answer.status.end(), pb::OK) != answer.status.end();
  const bool fits = answer.status.size() == part.segments.size() &&
                    answer.sums == part.layout.sums && answer.rows == part.layout.rows &&
                    answer.hidden == static_cast<uint32_t>(hidden_) && answer.dtype == dtype_;
  if (!answer.error.empty() || (any_ok && !fits)) {
    log::Warning(
        "worker {}, layer {}: {}", links_.links()[static_cast<size_t>(link)]->name(),
        job->moe.layer,
        answer.error.empty() ? "an answer of another shape than was asked for" : answer.error);
  }
  const bool usable = any_ok && fits;
  if (usable) job->answers[p] = std::move(answer);
  Settle(*job, p, !usable);
}

// News of a stream that ended while nothing ran must not hit what was sent over the next one.
void LinkDispatcher::OnDown(int link, uint64_t generation) {
  for (auto& [ticket, job] : jobs_) {
    for (size_t p = 0; p < job->state.size(); ++p) {
      const bool open = job->state[p] == Job::PartState::kOpen;
      if (open && job->plan.parts[p].link == link && job->generation[p] <= generation) {
        Settle(*job, p, true);
      }
    }
  }
}

void LinkDispatcher::PollLinks() {
  events_.clear();
  links_.Poll(&events_);
  for (expertwire::LinkSet::Event& event : events_) {
    if (auto* answer = std::get_if<Answer>(&event.event)) {
      OnAnswer(event.link, std::move(*answer));
    } else {
      OnDown(event.link, std::get<expertwire::LinkDown>(event.event).generation);
    }
  }
}

// Tells each worker once that the parts it still has are not wanted any more.
void LinkDispatcher::CancelOpen(MoeTicket ticket, const Job& job) {
  std::vector<int> cancelled;
  for (size_t p = 0; p < job.state.size(); ++p) {
    const int link = job.plan.parts[p].link;
    if (job.state[p] != Job::PartState::kOpen ||
        std::find(cancelled.begin(), cancelled.end(), link) != cancelled.end()) {
      continue;
    }
    links_.links()[static_cast<size_t>(link)]->Cancel(ticket, 0);
    cancelled.push_back(link);
  }
}

// Gives up the parts of a job that nobody answered in time.
void LinkDispatcher::Expire(MoeTicket ticket, Job& job) {
  CancelOpen(ticket, job);
  for (size_t p = 0; p < job.state.size(); ++p) {
    if (job.state[p] == Job::PartState::kOpen) Settle(job, p, true);
  }
}

void LinkDispatcher::Abandon(MoeTicket ticket) {
  const auto found = jobs_.find(ticket);
  SY_CHECK(found != jobs_.end());
  std::unique_ptr<Job> job = std::move(found->second);
  jobs_.erase(found);
  CancelOpen(ticket, *job);
  Recycle(std::move(job));
}

void LinkDispatcher::Recycle(std::unique_ptr<Job> job) {
  for (Answer& answer : job->answers) answer.payload = RowBuffer();  // back to its pool
  idle_jobs_.push_back(std::move(job));
}

bool LinkDispatcher::Finished(MoeTicket ticket) {
  const auto found = jobs_.find(ticket);
  SY_CHECK(found != jobs_.end());
  if (found->second->open > 0) {
    PollLinks();
    if (found->second->open > 0 && absl::Now() >= found->second->moe.deadline) {
      Expire(ticket, *found->second);
    }
    if (found->second->open > 0) return false;
  }
  std::unique_ptr<Job> job = std::move(found->second);
  jobs_.erase(found);
  Combine(*job);
  Recycle(std::move(job));
  return true;
}

void LinkDispatcher::Wait(absl::Time until) {
  for (const auto& [ticket, job] : jobs_) until = std::min(until, job->moe.deadline);
  links_.Wait(until);
}

void LinkDispatcher::Combine(Job& job) {
  const int64_t tokens = job.moe.tokens;
  pool_.ParallelFor(tokens, std::max<int64_t>(1, kElementsAPiece / (int64_t{hidden_} * top_k_)),
                    [&](int64_t begin, int64_t end) {
                      for (int64_t t = begin; t < end; ++t) CombineToken(job, t);
                    });
  uint64_t lost = 0;
  for (int64_t t = 0; t < tokens; ++t) lost += job.moe.lost[t] != 0;
  if (lost == 0) return;
  lost_rows_.fetch_add(lost, std::memory_order_relaxed);
  log::Warning("layer {}: {} of {} rows lost{}", job.moe.layer, lost, tokens, WorkersOfLost(job));
}

std::string LinkDispatcher::WorkersOfLost(const Job& job) const {
  std::set<std::string> names;
  for (size_t p = 0; p < job.state.size(); ++p) {
    if (job.state[p] != Job::PartState::kLost) continue;
    names.insert(links_.links()[static_cast<size_t>(job.plan.parts[p].link)]->name());
  }
  return names.empty() ? "" : fmt::format(" with worker {}", absl::StrJoin(names, ", "));
}

bool LinkDispatcher::Whole(const Job& job, int64_t token) const {
  for (int k = 0; k < top_k_; ++k) {
    const PairSource& s = job.plan.sources[static_cast<size_t>(token * top_k_ + k)];
    if (s.part < 0 || job.state[static_cast<size_t>(s.part)] != Job::PartState::kAnswered) {
      return false;
    }
    if (job.answers[static_cast<size_t>(s.part)].status[s.segment] != pb::OK) return false;
  }
  return true;
}

void LinkDispatcher::CombineToken(const Job& job, int64_t token) const {
  if (!Whole(job, token)) {
    std::fill_n(job.moe.out + token * hidden_, hidden_, 0.0f);
    job.moe.lost[token] = 1;
    return;
  }
  for (int64_t from = 0; from < hidden_; from += kSlice) {
    CombineSlice(job, token, from, std::min(kSlice, hidden_ - from));
  }
}

// Group by group ascending: a sum as it came, or the same sum made here from fp32 rows.
void LinkDispatcher::CombineSlice(const Job& job, int64_t token, int64_t from, int64_t n) const {
  float* out = job.moe.out + token * hidden_ + from;
  std::fill(out, out + n, 0.0f);
  float sum[kSlice], rounded[kSlice];
  const PairSource* sources = &job.plan.sources[static_cast<size_t>(token * top_k_)];
  const int32_t* ids = job.moe.experts + token * top_k_;
  for (int k = 0; k < top_k_;) {
    const int group = ids[k] / experts_per_group_;
    int end = k + 1;
    while (end < top_k_ && ids[end] / experts_per_group_ == group) ++end;
    const auto payload = [&](const PairSource& s) {
      return job.answers[static_cast<size_t>(s.part)].payload.data();
    };
    if (sources[k].sum) {
      const int64_t at = int64_t{sources[k].slot} * hidden_ + from;
      kernels::ConvertToFloat(payload(sources[k]) + static_cast<size_t>(at) * SizeOf(dtype_),
                              dtype_, n, sum);
    } else {
      std::fill(sum, sum + n, 0.0f);
      for (int i = k; i < end; ++i) {
        const PairSource& s = sources[i];
        const size_t offset = job.plan.parts[static_cast<size_t>(s.part)].layout.rows_offset(
            static_cast<uint32_t>(hidden_), dtype_);
        const auto* rows = reinterpret_cast<const float*>(payload(s) + offset);
        kernels::AddScaled(sum, rows + int64_t{s.slot} * hidden_ + from,
                           job.moe.weights[token * top_k_ + i], n);
      }
      kernels::Convert(sum, n, dtype_, rounded);
      kernels::ConvertToFloat(rounded, dtype_, n, sum);
    }
    kernels::Add(out, sum, n);
    k = end;
  }
}

std::string LinkDispatcher::Missing() const {
  std::string out = MapOf(links_.links(), moe_layers_, experts_).Missing();
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
  for (size_t i = 0; i < counters_.size(); ++i) {
    const ExpertLink& link = *links_.links()[i];
    const LinkCounters& c = *counters_[i];
    const auto read = [](const auto& a) { return a.load(std::memory_order_relaxed); };
    LinkReport report{.name = link.name(),
                      .state = link.state(),
                      .why = std::string(link.why().message()),
                      .wire = link.stats(),
                      .rows = read(c.rows),
                      .lost_parts = read(c.lost_parts),
                      .latency_us = c.latency_us.Read(),
                      .wire_us = c.wire_us.Read()};
    report.stale_answers = read(c.stale) + report.wire.stale_answers;
    out.push_back(std::move(report));
  }
  return out;
}

std::vector<uint64_t> LinkDispatcher::ExpertRows() const {
  std::vector<uint64_t> out;
  out.reserve(expert_rows_.size());
  for (const auto& rows : expert_rows_) out.push_back(rows.load(std::memory_order_relaxed));
  return out;
}

}  // namespace switchyard::router
