// Round trips of one MoE layer through the dispatcher: local, and to a worker process over loopback
// TCP, a Unix socket or shared memory. Prints percentiles in microseconds, compute included, and
// of them the mean that is neither the worker's computing nor its queue.
//   dispatch_bench [tokens] [hidden] [layers]     (with "listen" behind them: beside an idle
//   server)
#include <grpcpp/server_builder.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "expert-worker/worker.h"
#include "router/dispatch/link_dispatcher.h"
#include "services/base/clock.h"
#include "services/rpc/server.h"
#include "switchyard/internal/v1/expert.grpc.pb.h"
#include "tests/support/moe_fixture.h"

namespace switchyard {
namespace {

struct Shape {
  int64_t tokens = 1;
  testing::MoeShape moe{.layers = 2, .hidden = 512, .experts = 16, .intermediate = 64, .top_k = 4};
  int rounds = 5000;
};

std::unique_ptr<worker::Worker> MakeWorker(const ModelSpec& spec, kernels::ThreadPool* pool) {
  return *worker::Worker::Create(spec, "bench", std::make_shared<testing::MemorySource>(spec, 7),
                                 {.threads = 1}, pool);  // as the local one
}

// Serves until the parent is gone; writes its port to the pipe.
[[noreturn]] void ServeForever(const ModelSpec& spec, const std::string& address, int pipe) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  auto worker = MakeWorker(spec, nullptr);
  auto server = *rpc::Server::Start(
      {.listen = address}, [&](grpc::ServerBuilder& builder) { worker->Register(builder); });
  worker->Start();
  const std::string& at = server->address();
  const int port = address.starts_with("unix:") ? 0 : std::atoi(at.c_str() + at.rfind(':') + 1);
  if (::write(pipe, &port, sizeof port) != sizeof port) std::exit(1);
  server->grpc().Wait();
  std::exit(0);
}

void Measure(const char* name, const Shape& shape, const ModelSpec& spec,
             expertwire::LinkSet& links, kernels::ThreadPool& pool) {
  router::LinkDispatcher dispatcher(spec, DType::kBF16, links, pool, {});
  while (!dispatcher.Missing().empty()) dispatcher.Wait(SteadyNow() + absl::Milliseconds(5));
  testing::MoeBatch batch(spec, DType::kBF16, shape.tokens, 3);
  std::vector<double> us;
  for (int i = 0; i < shape.rounds; ++i) {
    const absl::Time start = SteadyNow();
    const auto ticket = dispatcher.Start({.layer = 1,
                                          .tokens = batch.tokens,
                                          .top_k = spec.gate.top_k,
                                          .x = {batch.x.data(), DType::kBF16, spec.hidden},
                                          .experts = batch.experts.data(),
                                          .weights = batch.weights.data(),
                                          .out = batch.out.data(),
                                          .lost = batch.lost.data()});
    while (!dispatcher.Finished(ticket)) dispatcher.Wait(SteadyNow() + absl::Seconds(1));
    us.push_back(absl::ToDoubleMicroseconds(SteadyNow() - start));
  }
  std::sort(us.begin(), us.end());
  const expertwire::HistogramCounts wire = dispatcher.Links()[0].wire_us;
  std::printf(
      "%-6s %lld tokens x %d: p1 %.1f  p10 %.1f  p50 %.1f  p90 %.1f  p99 %.1f us, wire %.1f\n",
      name, static_cast<long long>(shape.tokens), spec.hidden, us[us.size() / 100],
      us[us.size() / 10], us[us.size() / 2], us[us.size() * 9 / 10], us[us.size() * 99 / 100],
      static_cast<double>(wire.sum) / static_cast<double>(wire.count));
}

int Main(int argc, char** argv) {
  rpc::PollEachQueue();
  absl::SetMutexDeadlockDetectionMode(absl::OnDeadlockCycle::kIgnore);
  Shape shape;
  if (argc > 1) shape.tokens = std::atoi(argv[1]);
  if (argc > 2) shape.moe.hidden = std::atoi(argv[2]);
  if (argc > 3) shape.rounds = std::atoi(argv[3]);
  const ModelSpec spec = testing::MoeSpec(shape.moe);
  const std::string socket = "unix:/tmp/sy-dispatch-bench-" + std::to_string(::getpid());
  std::vector<std::string> targets{"127.0.0.1:0", socket};
  for (std::string& target : targets) {  // before any thread of this process
    int ends[2];
    if (::pipe(ends) != 0) return 1;
    if (::fork() == 0) ServeForever(spec, target, ends[1]);
    int port = 0;
    if (::read(ends[0], &port, sizeof port) != sizeof port) return 1;
    if (!target.starts_with("unix:")) target = "127.0.0.1:" + std::to_string(port);
  }
  kernels::ThreadPool pool(1);
  const auto isa = *kernels::ChooseIsa("auto");
  const expertwire::LinkSetOptions options{
      .hello = expertwire::MakeHello(
          "bench",
          {"bench", DType::kBF16, std::string(kernels::ArithmeticClass(DType::kBF16, isa))}, {},
          false)};
  std::unique_ptr<rpc::Server> listener;
  expertwire::pb::ExpertWorker::CallbackService idle;
  if (argc > 4) {
    listener = *rpc::Server::Start({.listen = "127.0.0.1:0"}, [&](grpc::ServerBuilder& builder) {
      builder.RegisterService(&idle);
    });
  }
  {
    auto worker = MakeWorker(spec, &pool);
    expertwire::LinkSet links(options);
    links.AddLocal("local", *worker);
    Measure("local", shape, spec, links, pool);
  }
  for (const std::string& target : targets) {
    expertwire::LinkSet links(options);
    links.AddGrpc({.target = target, .shared_memory = false});
    Measure(target == socket ? "unix" : "tcp", shape, spec, links, pool);
  }
  {
    expertwire::LinkSet links(options);
    links.AddGrpc({.target = targets[0]});
    Measure("shm", shape, spec, links, pool);
  }
  return 0;
}

}  // namespace
}  // namespace switchyard

int main(int argc, char** argv) { return switchyard::Main(argc, argv); }
