// A link in virtual time, with faults: computes with a real worker when the call is sent, and
// delivers the answer when its time has come.
#pragma once

#include <deque>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "expert-worker/worker.h"
#include "services/base/status.h"
#include "services/expertwire/expert_link.h"

namespace switchyard::testing {

// The clock of a simulation; a test runs one at a time.
inline absl::Time virtual_now = absl::UnixEpoch();
inline absl::Time VirtualNow() { return virtual_now; }

class SimulatedLink final : public expertwire::ExpertLink {
 public:
  SimulatedLink(std::string name, worker::Worker& worker)
      : name_(std::move(name)),
        worker_(worker),
        hello_(std::make_shared<const expertwire::pb::Hello>(worker.hello())) {}

  // ---- faults ----
  // The stream breaks, with all that is open; no other comes up before Rise.
  void Fall() {
    events_.push_back(expertwire::LinkDown{"killed", generation_});
    in_flight_.clear();
    up_ = stalled_ = false;
    ++generation_;
  }
  void Rise() {
    up_ = true;
    ++generation_;
  }
  // Nothing comes through, in either direction; nothing is lost.
  void Stall(bool stalled) { stalled_ = stalled, heard_ = virtual_now; }
  void set_latency(absl::Duration latency) { latency_ = latency; }
  void set_draining(bool draining) { draining_ = draining, ++generation_; }
  // It takes calls and says that it does not hold their experts.
  void set_refusing(bool refusing) { refusing_ = refusing; }
  // Only every second expert of a call.
  void set_refusing_some(bool refusing) { refusing_some_ = refusing; }
  void set_computing(bool computing) { computing_ = computing; }
  // Another worker has its place now.
  void Rename(std::string name) { name_ = std::move(name), ++generation_; }

  // When something of it is due next.
  absl::Time next() const {
    absl::Time at = absl::InfiniteFuture();
    if (!events_.empty()) return virtual_now;
    for (const InFlight& f : in_flight_) at = std::min(at, stalled_ ? at : f.due);
    return at;
  }
  size_t open() const { return in_flight_.size(); }
  uint64_t sent() const { return sent_; }
  // What it was told, in order.
  const std::vector<expertwire::pb::Prefetch>& hints() const { return hints_; }

  // ---- ExpertLink ----
  const std::string& name() const override { return name_; }
  expertwire::LinkState state() const override {
    if (!up_) return expertwire::LinkState::kConnecting;
    return draining_ ? expertwire::LinkState::kDraining : expertwire::LinkState::kUp;
  }
  absl::Status why() const override {
    return up_ ? absl::OkStatus() : Unavailable("{} is down", name_);
  }
  std::shared_ptr<const expertwire::pb::Hello> peer() const override { return hello_; }
  uint64_t generation() const override { return generation_; }
  expertwire::LinkStats stats() const override { return {}; }
  bool suspect() const override {
    return stalled_ && !in_flight_.empty() && virtual_now - heard_ >= absl::Milliseconds(150);
  }
  size_t max_part_bytes() const override { return 1 << 20; }
  bool borrows_rows() const override { return false; }
  absl::Status Send(expertwire::Call part) override {
    if (!up_) return Unavailable("{} is down", name_);
    if (in_flight_.empty()) heard_ = virtual_now;
    for (size_t s = 0; s < part.segments.size(); ++s) {
      if (refusing_ || (refusing_some_ && s % 2 == 1)) part.segments[s].version = 99;  // of nobody
    }
    ++sent_;
    part.deadline = absl::InfiniteFuture();  // the worker's clock is another
    auto sink = std::make_shared<Sink>();
    worker_.Accept(std::move(part), sink);
    while (!sink->answer) worker_.Compute();
    in_flight_.push_back({virtual_now + latency_, *std::move(sink->answer)});
    return absl::OkStatus();
  }
  void Cancel(uint64_t call_id, uint32_t attempt) override {
    const auto of_call = [&](const expertwire::Answer& a) {
      return a.call_id == call_id && a.attempt == attempt;
    };
    std::erase_if(in_flight_, [&](const InFlight& f) { return of_call(f.answer); });
  }
  bool Computing(uint64_t, uint32_t) override { return computing_; }
  void Assign(expertwire::pb::Assign) override {}
  void AckEpoch(uint64_t) override {}
  void Prefetch(expertwire::pb::Prefetch hint) override { hints_.push_back(std::move(hint)); }
  bool Poll(std::vector<expertwire::LinkEvent>* events) override {
    const size_t before = events->size();
    for (auto& event : events_) events->push_back(std::move(event));
    events_.clear();
    for (auto it = in_flight_.begin(); it != in_flight_.end() && !stalled_;) {
      if (it->due > virtual_now) {
        ++it;
        continue;
      }
      events->emplace_back(std::move(it->answer));
      it = in_flight_.erase(it);
      heard_ = virtual_now;
    }
    return events->size() > before;
  }

 private:
  struct InFlight {
    absl::Time due;
    expertwire::Answer answer;
  };
  struct Sink : expertwire::AnswerSink {
    void OnAnswer(expertwire::Answer a) override { answer = std::move(a); }
    void OnComputing(uint64_t, uint32_t) override {}
    std::optional<expertwire::Answer> answer;
  };

  std::string name_;
  worker::Worker& worker_;
  const std::shared_ptr<const expertwire::pb::Hello> hello_;
  bool up_ = true, stalled_ = false, draining_ = false, refusing_ = false, computing_ = false,
       refusing_some_ = false;
  uint64_t sent_ = 0;
  uint64_t generation_ = 1;
  absl::Duration latency_ = absl::Microseconds(200);
  absl::Time heard_;
  std::deque<InFlight> in_flight_;
  std::vector<expertwire::LinkEvent> events_;
  std::vector<expertwire::pb::Prefetch> hints_;
};

}  // namespace switchyard::testing
