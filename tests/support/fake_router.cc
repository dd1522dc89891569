#include "tests/support/fake_router.h"

#include <grpcpp/server_builder.h>

#include <algorithm>

#include "services/base/check.h"

namespace switchyard::testing {

using internal::v1::FromRouter;
using internal::v1::ToRouter;

namespace {
constexpr absl::Duration kPatience = absl::Seconds(20);
}

struct FakeRouter::Connection {
  grpc::ServerReaderWriter<FromRouter, ToRouter>* stream = nullptr;
  std::vector<Running> running;
  bool over = false;
};

std::vector<Token> TokensOf(const std::vector<int32_t>& ids, Token::Finish finish, int choice) {
  std::vector<Token> out(ids.size());
  for (size_t i = 0; i < ids.size(); ++i) {
    out[i].set_choice(choice);
    out[i].set_index(static_cast<int>(i));
    out[i].set_id(ids[i]);
  }
  if (!out.empty()) out.back().set_finish(finish);
  return out;
}

FakeRouter::FakeRouter(std::string text_fingerprint)
    : text_fingerprint_(std::move(text_fingerprint)) {
  auto server = rpc::Server::Start({.listen = "127.0.0.1:0"}, [this](grpc::ServerBuilder& builder) {
    builder.RegisterService(this);
  });
  SY_CHECK(server.ok());
  server_ = std::move(*server);
}

FakeRouter::~FakeRouter() {
  BreakStreams();
  server_->Shutdown(absl::ZeroDuration());
}

void FakeRouter::SetScript(Script script) {
  absl::MutexLock lock(&mutex_);
  script_ = std::move(script);
}

void FakeRouter::SetState(bool ready, const std::string& missing) {
  absl::MutexLock lock(&mutex_);
  ready_ = ready;
  missing_ = missing;
  ++state_version_;
}

void FakeRouter::BreakStreams() {
  absl::MutexLock lock(&mutex_);
  for (grpc::ServerContext* context : contexts_) context->TryCancel();
}

Submit FakeRouter::WaitForSubmit(size_t n) {
  absl::MutexLock lock(&mutex_);
  const auto there = [&] { return submits_.size() > n; };
  return mutex_.AwaitWithTimeout(absl::Condition(&there), kPatience) ? submits_[n] : Submit();
}

CancelRequest FakeRouter::WaitForCancel(size_t n) {
  if (!WaitForCancels(n + 1)) return CancelRequest();
  absl::MutexLock lock(&mutex_);
  return cancels_[n];
}

bool FakeRouter::WaitForCancels(size_t n) {
  absl::MutexLock lock(&mutex_);
  const auto there = [&] { return cancels_.size() >= n; };
  return mutex_.AwaitWithTimeout(absl::Condition(&there), kPatience);
}

void FakeRouter::Cancel(Connection& connection, const CancelRequest& cancel) {
  cancels_.push_back(cancel);
  for (Running& running : connection.running) {
    if (running.request != cancel.request()) continue;
    std::erase_if(running.tokens, [&](const Token& token) {
      return !cancel.has_choice() || token.choice() == cancel.choice();
    });
  }
  std::erase_if(connection.running, [](const Running& r) { return r.tokens.empty(); });
}

void FakeRouter::WriteSteps(Connection& connection) {
  int told_version = -1;
  uint64_t step = 0;
  while (true) {
    FromRouter state, tokens;
    {
      absl::MutexLock lock(&mutex_);
      const auto due = [&] {
        return connection.over || told_version != state_version_ || !connection.running.empty();
      };
      mutex_.Await(absl::Condition(&due));
      if (connection.over) return;
      if (told_version != state_version_) {
        told_version = state_version_;
        state.mutable_state()->set_ready(ready_);
        state.mutable_state()->set_missing(missing_);
      }
      for (Running& running : connection.running) {
        *tokens.mutable_step()->add_tokens() = std::move(running.tokens.front());
        running.tokens.pop_front();
      }
      std::erase_if(connection.running, [](const Running& r) { return r.tokens.empty(); });
    }
    tokens.mutable_step()->set_step(++step);
    if (state.has_state() && !connection.stream->Write(state)) return;
    if (tokens.step().tokens_size() > 0 && !connection.stream->Write(tokens)) return;
  }
}

grpc::Status FakeRouter::Serve(grpc::ServerContext* context,
                               grpc::ServerReaderWriter<FromRouter, ToRouter>* stream) {
  ToRouter message;
  if (!stream->Read(&message) || !message.has_hello()) return grpc::Status::CANCELLED;
  if (message.hello().text_fingerprint() != text_fingerprint_) {
    return {grpc::StatusCode::FAILED_PRECONDITION, "another text fingerprint"};
  }
  FromRouter hello;
  hello.mutable_hello()->set_protocol_version(1);
  hello.mutable_hello()->set_router_id("fake");
  hello.mutable_hello()->set_text_fingerprint(text_fingerprint_);
  hello.mutable_hello()->set_numerics_id("numerics-1");
  hello.mutable_hello()->set_max_model_len(max_model_len_);
  hello.mutable_hello()->set_vocab(2560);
  for (const int layer : {1, 2}) hello.mutable_hello()->add_moe_layers(layer);
  hello.mutable_hello()->set_top_k(2);
  stream->Write(hello);

  Connection connection;
  connection.stream = stream;
  {
    absl::MutexLock lock(&mutex_);
    contexts_.push_back(context);
  }
  std::thread writer([&] { WriteSteps(connection); });
  while (stream->Read(&message)) {
    absl::MutexLock lock(&mutex_);
    if (message.has_cancel()) Cancel(connection, message.cancel());
    if (!message.has_submit()) continue;
    submits_.push_back(message.submit());
    Running running{.request = message.submit().request(), .tokens = {}};
    for (Token& token : script_(message.submit())) {
      token.set_request(running.request);
      token.set_attempt(message.submit().attempt());
      running.tokens.push_back(std::move(token));
    }
    if (!running.tokens.empty()) connection.running.push_back(std::move(running));
  }
  {
    absl::MutexLock lock(&mutex_);
    connection.over = true;
    std::erase(contexts_, context);
  }
  writer.join();
  return grpc::Status::OK;
}

grpc::Status FakeRouter::DescribeExperts(grpc::ServerContext*,
                                         const internal::v1::DescribeExpertsRequest*,
                                         v1::RouterExperts* response) {
  response->set_router_id("fake");
  auto* load = response->add_experts();
  load->set_layer(1);
  load->set_expert(7);
  load->set_rows(11);
  load->add_workers("w0");
  return grpc::Status::OK;
}

}  // namespace switchyard::testing
