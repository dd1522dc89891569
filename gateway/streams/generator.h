// What both fronts stand on: from a client's request to a Generation that runs.
#pragma once

#include <atomic>
#include <memory>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "gateway/streams/generation.h"

namespace switchyard::gateway {

// Thread-safe.
class Generator {
 public:
  // All outlive it and every generation; `observer` may be null.
  Generator(const ServedModel& model, RouterClient& routers, GenerationObserver* observer,
            GenerationOptions options = {});

  // INVALID_ARGUMENT (FieldError), NOT_FOUND, UNAVAILABLE (says what is missing, or that the
  // gateway drains), RESOURCE_EXHAUSTED: the sink is then not called.
  absl::StatusOr<std::shared_ptr<Generation>> Start(const v1::GenerateRequest& request,
                                                    const CallContext& context,
                                                    std::shared_ptr<ChunkSink> sink);

  absl::StatusOr<v1::TokenizeResponse> Tokenize(const v1::TokenizeRequest& request) const;
  absl::StatusOr<v1::DetokenizeResponse> Detokenize(const v1::DetokenizeRequest& request) const;
  v1::ListModelsResponse ListModels() const;
  const ServedModel& model() const { return model_; }

  int open() const { return open_->size(); }
  // From now on Start is UNAVAILABLE.
  void BeginDrain() { draining_ = true; }
  bool draining() const { return draining_; }
  // Waits for what runs, then ends the rest with UNAVAILABLE. How many those were.
  int FinishWithin(absl::Duration timeout);

 private:
  const ServedModel& model_;
  RouterClient& routers_;
  GenerationObserver* const observer_;
  const GenerationOptions options_;
  const std::shared_ptr<OpenGenerations> open_;
  std::atomic<bool> draining_{false};
};

}  // namespace switchyard::gateway
