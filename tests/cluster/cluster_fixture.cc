#include "tests/cluster/cluster_fixture.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <thread>

#include "services/base/check.h"
#include "services/base/status.h"
#include "services/rpc/channel.h"
#include "services/rpc/status_map.h"
#include "switchyard/v1/inference.grpc.pb.h"
#include "tests/support/golden.h"

namespace switchyard::test {
namespace {

namespace fs = std::filesystem;

void Read(const v1::GenerateResponse& response, Answer& answer) {
  for (const v1::Choice& choice : response.choices()) {
    answer.degraded = choice.degraded();
    answer.ids.insert(answer.ids.end(), choice.token_ids().begin(), choice.token_ids().end());
    for (const v1::TokenLogprob& token : choice.logprobs()) {
      answer.logprobs.push_back(token.logprob());
      for (const v1::TokenLogprob& top : token.top()) {
        answer.logprobs.push_back(static_cast<float>(top.id()));
        answer.logprobs.push_back(top.logprob());
      }
    }
  }
}

}  // namespace

std::string ServableModel(const std::string& name) {
  if (name == "tiny-r1") return SourcePath("models/tiny-r1");
  const fs::path out = fs::path(testing::TempDir()) / fmt::format("{}-{}", name, ::getpid());
  fs::create_directories(out);
  const auto link = [&out](const fs::path& file) {
    if (!fs::exists(out / file.filename())) fs::create_symlink(file, out / file.filename());
  };
  const bool quantised = name.find('.') != std::string::npos;
  const std::string weights = quantised ? std::string(SY_QUANTISED_MODELS) + "/" + name
                                        : SourcePath("tests/golden/models/" + name);
  for (const auto& entry : fs::directory_iterator(weights)) {
    link(fs::absolute(entry.path()));
  }
  for (const char* file : {"tokenizer.json", "tokenizer_config.json"}) {
    link(fs::absolute(SourcePath(std::string("models/tiny-r1/") + file)));
  }
  return out.string();
}

std::unique_ptr<embedded::LocalCluster> StartCluster(const std::string& model, DType dtype,
                                                     std::vector<std::string> parts,
                                                     router::RouterOptions router, int routers) {
  embedded::LocalClusterOptions options;
  options.model_dir = ServableModel(model);
  options.threads = 2;
  options.router = std::move(router);
  options.router.dtype = dtype;
  if (options.router.kv_bytes == 0) options.router.kv_bytes = 64 << 20;
  options.gateway.http.address = "";
  options.gateway.grpc_address = "127.0.0.1:0";
  options.gateway.router_wait = absl::Seconds(60);
  options.routers = routers;
  options.sockets = !parts.empty();
  if (options.sockets) options.parts = std::move(parts);
  auto cluster = embedded::LocalCluster::Create(options);
  EXPECT_TRUE(cluster.ok()) << cluster.status();
  SY_CHECK(cluster.ok());
  const absl::Status ready = (*cluster)->WaitReady(absl::Seconds(60));
  EXPECT_TRUE(ready.ok()) << ready;
  return std::move(*cluster);
}

Answer Generate(embedded::LocalCluster& cluster, const Ask& ask) {
  const auto channel = rpc::Connect(cluster.gateway().grpc_address(), {});
  const auto stub = v1::Inference::NewStub(*channel);
  v1::GenerateRequest request;
  request.mutable_prompt_ids()->mutable_ids()->Assign(ask.prompt.begin(), ask.prompt.end());
  request.mutable_sampling()->set_temperature(ask.temperature);
  request.mutable_sampling()->set_seed(ask.seed);
  request.mutable_sampling()->set_ignore_eos(true);
  request.set_max_tokens(ask.max_tokens);
  request.set_top_logprobs(3);
  request.set_return_token_ids(true);
  grpc::ClientContext context;
  const auto reader = stub->Generate(&context, request);
  Answer answer;
  for (v1::GenerateResponse response; reader->Read(&response);) Read(response, answer);
  const grpc::Status status = reader->Finish();
  answer.status =
      absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
  return answer;
}

std::vector<Answer> GenerateAll(embedded::LocalCluster& cluster, const std::vector<Ask>& asks) {
  std::vector<Answer> answers(asks.size());
  std::vector<std::thread> threads;
  for (size_t i = 0; i < asks.size(); ++i) {
    threads.emplace_back([&, i] { answers[i] = Generate(cluster, asks[i]); });
  }
  for (std::thread& thread : threads) thread.join();
  return answers;
}

}  // namespace switchyard::test
