// The dispatcher with real workers, local and over gRPC, for its tests.
#pragma once

#include <gmock/gmock.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server_builder.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "expert-worker/worker.h"
#include "router/dispatch/link_dispatcher.h"
#include "services/expertwire/arithmetic.h"
#include "tests/support/moe_fixture.h"

namespace switchyard::testing {

inline constexpr char kFingerprint[] = "fingerprint-of-the-test";

inline std::unique_ptr<worker::Worker> MakeWorker(const ModelSpec& spec,
                                                  worker::WorkerOptions options,
                                                  kernels::ThreadPool* pool = nullptr) {
  auto made = worker::Worker::Create(spec, kFingerprint, std::make_shared<MemorySource>(spec, 7),
                                     options, pool);
  EXPECT_TRUE(made.ok()) << made.status();
  return *std::move(made);
}

// The sum over the fixed tree, by plain loops.
inline std::vector<float> Expected(const ModelSpec& spec, DType dtype, int layer,
                                   const MoeBatch& batch) {
  MemorySource source(spec, 7);
  for (const auto& info : source.tensors()) {
    if (info.shape.size() < 3 && !spec.experts.stacked) {
      source.mapped.push_back({info.name, 0, info.shape[0]});
      source.mapped.push_back({info.name, 0, -1});
    }
    if (spec.experts.stacked) {
      for (int e = 0; e < spec.experts.count; ++e) source.mapped.push_back({info.name, e, 1});
    }
  }
  kernels::ThreadPool pool(1);
  const kernels::Compute compute(*kernels::ChooseIsa("auto"), pool);
  return PlainMoe(spec, source, compute, dtype, layer, batch);
}

inline void ExpectSame(const MoeBatch& batch, const std::vector<float>& expected) {
  ASSERT_EQ(batch.out.size(), expected.size());
  EXPECT_EQ(std::memcmp(batch.out.data(), expected.data(), expected.size() * sizeof(float)), 0);
  EXPECT_THAT(batch.lost, ::testing::Each(0));
}

// A worker with a server of its own, on a port or a socket; can be killed and started again.
class ServedWorker {
 public:
  ServedWorker(const ModelSpec& spec, worker::WorkerOptions options,
               std::string address = "127.0.0.1:0")
      : ServedWorker(MakeWorker(spec, std::move(options)), std::move(address)) {}
  ServedWorker(std::unique_ptr<worker::Worker> worker, std::string address)
      : worker_(std::move(worker)) {
    grpc::ServerBuilder builder;
    builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
    int port = 0;
    builder.AddListeningPort(address, grpc::InsecureServerCredentials(), &port);
    worker_->Register(builder);
    server_ = builder.BuildAndStart();
    EXPECT_NE(server_, nullptr);
    worker_->Start();
    address_ = address.starts_with("unix:") ? address : "127.0.0.1:" + std::to_string(port);
  }
  ~ServedWorker() { Kill(); }

  void Kill() {
    if (!server_) return;
    server_->Shutdown(std::chrono::system_clock::now());
    worker_->Stop();
    server_.reset();
  }
  worker::Worker& worker() { return *worker_; }
  const std::string& address() const { return address_; }

 private:
  std::unique_ptr<worker::Worker> worker_;
  std::unique_ptr<grpc::Server> server_;
  std::string address_;
};

// One router: links, dispatcher and the pool of its engine thread, which is the test's.
class Router {
 public:
  Router(const ModelSpec& spec, DType dtype, std::vector<std::string> addresses,
         expertwire::CreditGrant grant = {}, std::vector<worker::Worker*> local = {},
         const router::DispatchOptions& options = {})
      : spec_(spec), dtype_(dtype), pool_(2) {
    const auto isa = *kernels::ChooseIsa("auto");
    expertwire::NumericsClass numerics{
        kFingerprint, dtype, expertwire::ExpertArithmetic(spec, MemorySource(spec, 1), dtype, isa)};
    links_ = std::make_unique<expertwire::LinkSet>(expertwire::LinkSetOptions{
        .hello = expertwire::MakeHello("test-router", numerics, grant, false)});
    for (worker::Worker* worker : local) links_->AddLocal("local", *worker);
    for (const std::string& address : addresses) links_->AddGrpc({.target = address});
    dispatcher_ = std::make_unique<router::LinkDispatcher>(spec, dtype, *links_, pool_, options);
  }

  // Drives the links until `done`; the time is only for a test that hangs.
  template <typename Condition>
  bool Until(Condition done) {
    const absl::Time bound = absl::Now() + absl::Seconds(20);
    while (!done()) {
      if (absl::Now() > bound) return false;
      dispatcher_->Wait(absl::Now() + absl::Milliseconds(5));
    }
    return true;
  }
  bool WhenReady() {
    return Until([&] { return dispatcher_->Missing().empty(); });
  }

  router::MoeTicket Start(MoeBatch& batch, int layer = 1,
                          absl::Time deadline = absl::InfiniteFuture()) {
    return dispatcher_->Start({.layer = layer,
                               .tokens = batch.tokens,
                               .top_k = spec_.gate.top_k,
                               .x = {batch.x.data(), dtype_, spec_.hidden},
                               .experts = batch.experts.data(),
                               .weights = batch.weights.data(),
                               .out = batch.out.data(),
                               .lost = batch.lost.data(),
                               .deadline = deadline});
  }
  void Finish(router::MoeTicket ticket) {
    while (!dispatcher_->Finished(ticket)) dispatcher_->Wait(absl::Now() + absl::Seconds(1));
  }
  void Run(MoeBatch& batch, int layer = 1) { Finish(Start(batch, layer)); }

  router::LinkDispatcher& dispatcher() { return *dispatcher_; }
  expertwire::LinkSet& links() { return *links_; }

 private:
  const ModelSpec spec_;
  const DType dtype_;
  kernels::ThreadPool pool_;
  std::unique_ptr<expertwire::LinkSet> links_;
  std::unique_ptr<router::LinkDispatcher> dispatcher_;
};

inline std::string SocketPath() {
  static int counter = 0;
  return "unix:/tmp/sy-wire-" + std::to_string(::getpid()) + "-" + std::to_string(counter++);
}

}  // namespace switchyard::testing
