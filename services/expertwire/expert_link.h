// A link is one router's connection to one worker, whatever it runs over. The router's engine
// thread sends parts of calls and polls what came back; a link never blocks it. CallHandler and
// AnswerSink are the worker's side, the same for every kind of link.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "services/expertwire/frame.h"

namespace switchyard::expertwire {

enum class LinkState : uint8_t {
  kConnecting,  // no stream, or no hello yet; tried again by itself
  kUp,
  kDraining,  // about to leave: for what nobody else holds
  kRefused,   // one side refused the other's hello; tried again slowly
  kGone,      // removed from its set; its index may become another link's, of a later generation
};

std::string_view Name(LinkState state);

// `hello` as it would be now that its worker said `holds`.
pb::Hello WithHolds(const pb::Hello& hello, pb::Holds holds);

// Calls that will not be answered any more, all of them, because the stream ended.
struct LinkDown {
  std::string why;
  uint64_t generation = 0;  // of the link while that stream stood: later calls went over another
};

using LinkEvent = std::variant<Answer, LinkDown>;

// Relaxed counters, readable by any thread.
struct LinkStats {
  uint64_t frames_sent = 0;      // calls
  uint64_t frames_received = 0;  // answers
  uint64_t bytes_sent = 0;       // calls with their headers; payloads alone on a local link
  uint64_t bytes_received = 0;
  uint64_t connects = 0;       // streams that reached kUp
  uint64_t suspicions = 0;     // times that progress frames were missing while calls were open
  uint64_t stale_answers = 0;  // of unknown or settled calls: dropped
  bool shares_memory = false;  // frames go through memory of this host, now
};

class ExpertLink {
 public:
  virtual ~ExpertLink() = default;

  // ---- any thread ----
  virtual const std::string& name() const = 0;  // the address as it was given
  virtual LinkState state() const = 0;
  // Why the link is not up; OK while it is.
  virtual absl::Status why() const = 0;
  // The worker's hello, with what it has said since of what it holds; null before the first. The
  // last one stays while the link reconnects.
  virtual std::shared_ptr<const pb::Hello> peer() const = 0;
  // Changes with every change of state or hello.
  virtual uint64_t generation() const = 0;
  virtual LinkStats stats() const = 0;
  // Calls are open and several progress frames are missing: the worker or the way to it has
  // stopped.
  virtual bool suspect() const = 0;

  // ---- the engine thread ----
  // Largest part, in bytes of payload either way, that this link wants to carry.
  virtual size_t max_part_bytes() const = 0;
  // Where the rows of a call may be borrowed until it is answered or cancelled, instead of copied.
  virtual bool borrows_rows() const = 0;
  // Sends, or keeps until credits allow. UNAVAILABLE if the link is not up, RESOURCE_EXHAUSTED if
  // the part is larger than the peer takes.
  virtual absl::Status Send(Call part) = 0;
  // Nothing of this call will be polled afterwards.
  virtual void Cancel(uint64_t call_id, uint32_t attempt) = 0;
  // Said to the worker, in this order, if the link is up and the worker of a revision that knows
  // it: else lost, so whoever says it says it again after every hello. AckEpoch: no call that was
  // planned by an earlier placement is open.
  virtual void Assign(pb::Assign assign) = 0;
  virtual void AckEpoch(uint64_t epoch) = 0;
  virtual void Prefetch(pb::Prefetch prefetch) = 0;
  // Whether the worker has said that it is at this call.
  virtual bool Computing(uint64_t call_id, uint32_t attempt) = 0;
  // Appends what came since the last time; with a local worker, computes first. Whether any came.
  virtual bool Poll(std::vector<LinkEvent>* events) = 0;
};

// Where a worker's answers go. Called by the thread that computes.
class AnswerSink {
 public:
  virtual ~AnswerSink() = default;
  virtual void OnAnswer(Answer answer) = 0;
  // Computing of this part begins (progress frames say so).
  virtual void OnComputing(uint64_t call_id, uint32_t attempt) = 0;
};

// What a worker is to its links. All but Compute are thread-safe.
class CallHandler {
 public:
  virtual ~CallHandler() = default;
  // As it stands: identity, numerics, experts held, and the reason if `refused`.
  virtual pb::Hello hello() const = 0;
  virtual bool draining() const = 0;
  virtual pb::DescribeResponse Describe() const = 0;
  // Takes one decoded part; answered through `sink` from inside Compute, exactly once unless
  // dropped. The queue is bounded by the credits of the links.
  virtual void Accept(Call part, std::shared_ptr<AnswerSink> sink) = 0;
  // Drops the parts of a call that are not being computed yet; they will not be answered.
  struct Dropped {
    uint32_t parts = 0;
    size_t wire_bytes = 0;  // of credits that are free again
  };
  virtual Dropped Cancel(const AnswerSink* sink, uint64_t call_id, uint32_t attempt) = 0;
  // A router came; until Forget it is one that has to acknowledge an epoch. Not called for the
  // further lanes of a router.
  virtual void OnRouter(const AnswerSink* /*sink*/) {}
  // What a router said by frames of these names. They return soon: loading is done elsewhere.
  virtual void OnAssign(const pb::Assign& /*assign*/) {}
  virtual void OnMapAck(const AnswerSink* /*sink*/, uint64_t /*epoch*/) {}
  virtual void OnPrefetch(const pb::Prefetch& /*prefetch*/) {}
  // Changes with what `holds` says, after which every router that is connected is told, within some
  // 50 ms. It is read all the time.
  virtual uint64_t holds_version() const { return 0; }
  virtual pb::Holds holds() const { return {}; }
  // The peer is gone: drops all its parts. The sink may still hear of one that is being computed.
  virtual void Forget(const AnswerSink* sink) = 0;
  // Answers what waits, several parts at once where that shares reading of weights. Whether
  // anything waited. One thread at a time.
  virtual bool Compute() = 0;
};

}  // namespace switchyard::expertwire
