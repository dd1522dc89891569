// A Router.Serve server without a model: what it answers to a request is a list of tokens that the
// test writes. One token of each running request a step, as a router does.
#pragma once

#include <atomic>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "services/rpc/server.h"
#include "switchyard/internal/v1/router.grpc.pb.h"

namespace switchyard::testing {

using internal::v1::CancelRequest;
using internal::v1::Submit;
using internal::v1::Token;

// The tokens of choice `choice`: `ids` with consecutive indices, the last with `finish`.
std::vector<Token> TokensOf(const std::vector<int32_t>& ids, Token::Finish finish = Token::STOP,
                            int choice = 0);

class FakeRouter final : public internal::v1::Router::Service {
 public:
  // What a request gets (`request` and `attempt` are filled in); a list without a finish leaves it
  // open.
  using Script = std::function<std::vector<Token>(const Submit&)>;

  explicit FakeRouter(std::string text_fingerprint);
  ~FakeRouter() override;

  const std::string& address() const { return server_->address(); }
  void SetScript(Script script);
  void SetMaxModelLen(int tokens) { max_model_len_ = tokens; }  // for hellos to come
  void SetState(bool ready, const std::string& missing);
  void BreakStreams();

  // Waits up to 20 seconds for the n-th submit or cancel (from 0), or for n cancels.
  Submit WaitForSubmit(size_t n);
  CancelRequest WaitForCancel(size_t n);
  bool WaitForCancels(size_t n);

  grpc::Status Serve(
      grpc::ServerContext* context,
      grpc::ServerReaderWriter<internal::v1::FromRouter, internal::v1::ToRouter>* stream) override;
  grpc::Status DescribeExperts(grpc::ServerContext* context,
                               const internal::v1::DescribeExpertsRequest* request,
                               v1::RouterExperts* response) override;

 private:
  struct Running {
    uint64_t request = 0;
    std::deque<Token> tokens;
  };
  struct Connection;
  void Cancel(Connection& connection, const CancelRequest& cancel);
  void WriteSteps(Connection& connection);

  const std::string text_fingerprint_;
  std::atomic<int> max_model_len_{4096};
  absl::Mutex mutex_;
  Script script_;
  bool ready_ = true;
  std::string missing_;
  int state_version_ = 0;
  std::vector<Submit> submits_;
  std::vector<CancelRequest> cancels_;
  std::vector<grpc::ServerContext*> contexts_;
  std::unique_ptr<rpc::Server> server_;
};

}  // namespace switchyard::testing
