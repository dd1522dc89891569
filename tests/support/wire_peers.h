// The two ends of the expert wire in the hands of a test: a worker that answers rows with
// themselves behind a real server, and a router that writes raw frames and reads when it is told
// to.
#pragma once

#include <grpcpp/create_channel.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/security/credentials.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server_builder.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <deque>

#include "services/base/status.h"
#include "services/expertwire/codec.h"
#include "services/expertwire/grpc_server.h"
#include "services/expertwire/handshake.h"
#include "services/expertwire/link_set.h"

namespace switchyard::expertwire {

inline const NumericsClass kNumerics{"abc", DType::kBF16, "bf16-fma"};
inline constexpr uint32_t kHidden = 512;

// Answers each part with its own rows, times `copies`; can hold answers back.
class EchoWorker : public CallHandler {
 public:
  explicit EchoWorker(CreditGrant grant = {}) : grant_(grant) {}

  pb::Hello hello() const override {
    pb::Hello out = MakeHello("echo", kNumerics, grant_, false);
    out.set_revision(revision);
    return out;
  }
  bool draining() const override { return false; }
  pb::DescribeResponse Describe() const override {
    pb::DescribeResponse out;
    *out.mutable_hello() = hello();
    return out;
  }
  void Accept(Call part, std::shared_ptr<AnswerSink> sink) override {
    absl::MutexLock lock(&mutex_);
    waiting_.push_back({std::move(part), std::move(sink)});
    most_ = std::max(most_, waiting_.size());
  }
  Dropped Cancel(const AnswerSink* sink, uint64_t id, uint32_t attempt) override {
    absl::MutexLock lock(&mutex_);
    Dropped dropped;
    std::erase_if(waiting_, [&](const Waiting& w) {
      if (w.sink.get() != sink || w.call.call_id != id || w.call.attempt != attempt) return false;
      ++dropped.parts;
      dropped.wire_bytes += w.call.wire_bytes;
      return true;
    });
    cancelled += static_cast<int>(dropped.parts);
    return dropped;
  }
  void Forget(const AnswerSink* sink) override {
    absl::MutexLock lock(&mutex_);
    std::erase_if(waiting_, [&](const Waiting& w) { return w.sink.get() == sink; });
  }
  bool Compute() override {
    if (held.load()) return false;
    std::deque<Waiting> now;
    {
      absl::MutexLock lock(&mutex_);
      now.swap(waiting_);
    }
    for (Waiting& w : now) {
      Answer answer;
      answer.call_id = w.call.call_id;
      answer.attempt = w.call.attempt + attempt_offset.load();
      answer.part = w.call.part;
      answer.hidden = w.call.hidden;
      answer.status.assign(w.call.segments.size(), w.call.bad.empty() ? pb::OK : pb::BAD);
      answer.error = w.call.bad;
      answer.call_wire_bytes = w.call.wire_bytes;
      if (w.call.bad.empty()) answer.sums = w.call.rows;
      answer.payload = w.call.payload;
      w.sink->OnAnswer(std::move(answer));
      answered.fetch_add(1);
    }
    return !now.empty();
  }

  void OnRouter(const AnswerSink* sink) override { Note(sink, "router"); }
  void OnAssign(const pb::Assign& assign) override {
    Note(nullptr, fmt::format("assign {}{}", assign.epoch(), assign.also() ? " also" : ""));
  }
  void OnMapAck(const AnswerSink* sink, uint64_t epoch) override {
    Note(sink, fmt::format("ack {}", epoch));
  }
  void OnPrefetch(const pb::Prefetch& prefetch) override {
    Note(nullptr, fmt::format("prefetch {}", prefetch.experts_size()));
  }
  uint64_t holds_version() const override { return epoch.load(); }
  pb::Holds holds() const override {
    pb::Holds out;
    out.set_epoch(epoch.load());
    out.set_assigned_epoch(epoch.load() + 1);
    out.set_free_bytes(10 * epoch.load());
    out.set_held_bytes(20 * epoch.load());
    out.add_held()->set_layer(static_cast<int32_t>(epoch.load()));
    out.add_failed()->set_why("gone");
    return out;
  }
  // What routers said, in order; what is a router's own, all by one sink.
  std::vector<std::string> said() {
    absl::MutexLock lock(&mutex_);
    return said_;
  }

  size_t most_waiting() {
    absl::MutexLock lock(&mutex_);
    return most_;
  }
  size_t waiting() {
    absl::MutexLock lock(&mutex_);
    return waiting_.size();
  }

  std::atomic<bool> held = false;
  std::atomic<uint32_t> attempt_offset = 0;
  std::atomic<int> answered = 0, cancelled = 0;
  std::atomic<uint64_t> epoch = 0;  // of what it holds
  uint32_t revision = kWireRevision;

 private:
  void Note(const AnswerSink* sink, std::string what) {
    absl::MutexLock lock(&mutex_);
    if (sink != nullptr && router_ == nullptr) router_ = sink;
    if (sink != nullptr && router_ != sink) what += " of another";
    said_.push_back(std::move(what));
  }

  struct Waiting {
    Call call;
    std::shared_ptr<AnswerSink> sink;
  };
  const CreditGrant grant_;
  absl::Mutex mutex_;
  std::deque<Waiting> waiting_ ABSL_GUARDED_BY(mutex_);
  size_t most_ ABSL_GUARDED_BY(mutex_) = 0;
  const AnswerSink* router_ ABSL_GUARDED_BY(mutex_) = nullptr;
  std::vector<std::string> said_ ABSL_GUARDED_BY(mutex_);
};

class Server {
 public:
  explicit Server(EchoWorker& worker, CreditGrant grant = {}, int window = 0)
      : Server(worker, GrpcServerOptions{.grant = grant}, window) {}
  Server(EchoWorker& worker, const GrpcServerOptions& options, int window = 0)
      : wire_(worker, options) {
    grpc::ServerBuilder builder;
    builder.SetMaxReceiveMessageSize(static_cast<int>(options.max_frame_bytes));
    if (window > 0) {
      builder.AddChannelArgument(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, window);
      builder.AddChannelArgument(GRPC_ARG_HTTP2_BDP_PROBE, 0);
    }
    int port = 0;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
    wire_.Register(builder);
    server_ = builder.BuildAndStart();
    wire_.Start();
    address = "127.0.0.1:" + std::to_string(port);
  }
  ~Server() {
    server_->Shutdown(std::chrono::system_clock::now());
    wire_.Stop();
  }
  GrpcServer& wire() { return wire_; }
  std::string address;

 private:
  GrpcServer wire_;
  std::unique_ptr<grpc::Server> server_;
};

inline Call MakeCall(uint64_t id, uint32_t rows = 1) {
  static RowBufferPool pool;
  Call call;
  call.call_id = id;
  call.rows = rows;
  call.hidden = kHidden;
  call.payload = pool.Take(size_t{rows} * kHidden * 2);
  std::memset(call.payload.mutable_data(), static_cast<int>(id), call.payload.bytes());
  call.answer_bytes = call.payload.bytes();
  call.segments = {{0, 0, pb::GROUP_SUMS, 0, rows}};
  for (uint32_t r = 0; r < rows; ++r) call.row_index.push_back(r);
  call.weights.assign(rows, 1.0f);
  return call;
}

inline LinkSetOptions RouterOptions(CreditGrant grant = {}) {
  return {.hello = MakeHello("router", kNumerics, grant, false)};
}

// Polls until `done`; the bound is only for a test that hangs.
template <typename Condition>
bool Until(LinkSet& links, std::vector<LinkSet::Event>* events, Condition done) {
  const absl::Time bound = absl::Now() + absl::Seconds(20);
  while (!done()) {
    if (absl::Now() > bound) return false;
    links.Poll(events);
    if (!done()) links.Wait(absl::Now() + absl::Milliseconds(5));
  }
  return true;
}

inline bool Up(const LinkSet& links) { return links.links()[0]->state() == LinkState::kUp; }

// A router's end in the hands of the test: raw frames, read only when asked for.
class RawRouter {
 public:
  explicit RawRouter(const std::string& address, int window = 0) {
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    if (window > 0) {
      arguments.SetInt(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, window);
      arguments.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
    }
    stub_ = std::make_unique<grpc::GenericStub>(
        grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments));
    rpc_ = stub_->PrepareCall(&context_, "/switchyard.internal.v1.ExpertWorker/Dispatch", &queue_);
    rpc_->StartCall(this);
    Next();
  }
  ~RawRouter() {
    context_.TryCancel();
    if (!finished_) Finish();
    queue_.Shutdown();
  }
  bool Write(const std::string& bytes) {
    const grpc::Slice slice(bytes);
    rpc_->Write(grpc::ByteBuffer(&slice, 1), this);
    return Next();
  }
  bool Write(const Frame& frame) {
    const RowBuffer prefix = EncodePrefix(frame, absl::Now(), pool_), payload = PayloadOf(frame);
    std::string bytes(prefix.as<char>(), prefix.bytes());
    return Write(bytes.append(payload.as<char>(), payload.bytes()));
  }
  absl::StatusOr<Frame> Read() {
    grpc::ByteBuffer buffer;
    rpc_->Read(&buffer, this);
    if (!Next()) return Unavailable("the stream ended");
    std::vector<grpc::Slice> slices;
    EXPECT_TRUE(buffer.Dump(&slices).ok());
    RowBuffer bytes = pool_.Take(buffer.Length());
    std::byte* at = bytes.mutable_data();
    for (const grpc::Slice& slice : slices) {
      std::memcpy(at, slice.begin(), slice.size());
      at += slice.size();
    }
    return DecodeFrame(bytes, absl::Now(), {}, pool_);
  }
  grpc::Status Finish() {
    grpc::Status status;
    rpc_->Finish(&status, this);
    Next();
    finished_ = true;
    return status;
  }

 private:
  bool Next() {
    void* tag = nullptr;
    bool ok = false;
    const auto bound = std::chrono::system_clock::now() + std::chrono::seconds(20);
    EXPECT_EQ(queue_.AsyncNext(&tag, &ok, bound), grpc::CompletionQueue::GOT_EVENT);
    return ok;
  }

  RowBufferPool pool_;
  grpc::CompletionQueue queue_;
  grpc::ClientContext context_;
  std::unique_ptr<grpc::GenericStub> stub_;
  std::unique_ptr<grpc::GenericClientAsyncReaderWriter> rpc_;
  bool finished_ = false;
};

// The next answer, past progress and credit frames.
inline absl::StatusOr<Answer> ReadAnswer(RawRouter& router) {
  while (true) {
    absl::StatusOr<Frame> frame = router.Read();
    if (!frame.ok()) return frame.status();
    if (auto* answer = std::get_if<Answer>(&frame->body)) return std::move(*answer);
  }
}

}  // namespace switchyard::expertwire
