// switchyard.v1.Inference over the one pipeline. Callback API: reactions only enqueue. Deadlines
// and cancellation travel to the router; a client that does not read is ended when its chunks would
// pass a bound.
#pragma once

#include <cstddef>

#include "gateway/api/gateway_metrics.h"
#include "gateway/streams/generator.h"
#include "services/security/keys.h"
#include "switchyard/v1/inference.grpc.pb.h"

namespace switchyard::gateway {

struct InferenceServiceOptions {
  const security::KeySet* keys = nullptr;  // null: no key is asked for
  size_t max_buffered_bytes = 1 << 20;     // of chunks that wait for one client
};

class InferenceService final : public v1::Inference::CallbackService {
 public:
  // All outlive it.
  InferenceService(Generator& generator, GatewayMetrics& metrics, InferenceServiceOptions options)
      : generator_(generator), metrics_(metrics), options_(options) {}

  grpc::ServerWriteReactor<v1::GenerateResponse>* Generate(
      grpc::CallbackServerContext* context, const v1::GenerateRequest* request) override;
  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext* context,
                                     const v1::TokenizeRequest* request,
                                     v1::TokenizeResponse* response) override;
  grpc::ServerUnaryReactor* Detokenize(grpc::CallbackServerContext* context,
                                       const v1::DetokenizeRequest* request,
                                       v1::DetokenizeResponse* response) override;
  grpc::ServerUnaryReactor* ListModels(grpc::CallbackServerContext* context,
                                       const v1::ListModelsRequest* request,
                                       v1::ListModelsResponse* response) override;

 private:
  absl::StatusOr<std::string> FairKeyOf(grpc::CallbackServerContext* context) const;
  // Finishes a unary call and counts it.
  grpc::ServerUnaryReactor* Reply(grpc::CallbackServerContext* context, const char* method,
                                  absl::Time start, const absl::Status& status);

  Generator& generator_;
  GatewayMetrics& metrics_;
  const InferenceServiceOptions options_;
};

}  // namespace switchyard::gateway
