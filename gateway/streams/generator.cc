#include "gateway/streams/generator.h"

#include <utility>

#include "gateway/streams/field_error.h"
#include "gateway/streams/request_id.h"
#include "services/base/clock.h"
#include "services/base/random_bits.h"
#include "services/base/status.h"

namespace switchyard::gateway {

Generator::Generator(const ServedModel& model, RouterClient& routers, GenerationObserver* observer,
                     GenerationOptions options)
    : model_(model),
      routers_(routers),
      observer_(observer),
      options_(options),
      open_(std::make_shared<OpenGenerations>()) {}

absl::StatusOr<std::shared_ptr<Generation>> Generator::Start(const v1::GenerateRequest& request,
                                                             const CallContext& context,
                                                             std::shared_ptr<ChunkSink> sink) {
  if (draining_) return Unavailable("the gateway is shutting down");
  if (!request.request_id().empty() && !IsRequestId(request.request_id())) {
    return FieldError("request_id", "expected 1 to 128 letters, digits, '-', '_', '.' and ':'");
  }
  const std::string id = !context.request_id.empty()     ? context.request_id
                         : !request.request_id().empty() ? request.request_id()
                                                         : MakeRequestId();
  SY_RETURN_IF_ERROR(model_.CheckName(request.model()));
  const std::optional<ModelInfo> info = routers_.model();
  if (!info.has_value()) return Unavailable("no router is ready: {}", routers_.state().missing);
  SY_ASSIGN_OR_RETURN(RequestPlan plan, PlanRequest(request, model_, *info, RandomBits()));
  plan.submit.set_trace_id(id);
  plan.submit.set_fair_key(context.fair_key);
  if (context.deadline <= SteadyNow()) {
    return DeadlineExceeded("the deadline had passed before the request began");
  }
  CallContext named = context;
  named.request_id = id;
  auto generation = std::make_shared<Generation>(model_, routers_, observer_, options_, open_,
                                                 std::move(plan), *info, named, std::move(sink));
  SY_RETURN_IF_ERROR(generation->Submit());
  return generation;
}

absl::StatusOr<v1::TokenizeResponse> Generator::Tokenize(const v1::TokenizeRequest& request) const {
  SY_RETURN_IF_ERROR(model_.CheckName(request.model()));
  const std::optional<ModelInfo> info = routers_.model();
  v1::TokenizeResponse out;
  std::string text;
  if (request.has_chat()) {
    SY_ASSIGN_OR_RETURN(text, model_.RenderChat(request.chat()));
  } else if (request.has_prompt()) {
    text = request.prompt();
  } else {
    return FieldError("prompt", "is missing: one of chat and prompt is needed");
  }
  const bool special =
      request.has_add_special_tokens() ? request.add_special_tokens() : !request.has_chat();
  auto ids = model_.tokenizer().Encode(text, {.add_special_tokens = special});
  if (!ids.ok()) return FieldError("prompt", "{}", ToStd(ids.status().message()));
  out.mutable_ids()->Assign(ids->begin(), ids->end());
  out.set_max_model_len(info.has_value() ? info->max_model_len : 0);
  return out;
}

absl::StatusOr<v1::DetokenizeResponse> Generator::Detokenize(
    const v1::DetokenizeRequest& request) const {
  SY_RETURN_IF_ERROR(model_.CheckName(request.model()));
  for (int i = 0; i < request.ids_size(); ++i) {
    if (request.ids(i) < 0 || request.ids(i) >= model_.vocab_size()) {
      return FieldError("tokens", "id {} at index {} is not in [0, {}]", request.ids(i), i,
                        model_.vocab_size() - 1);
    }
  }
  v1::DetokenizeResponse out;
  out.set_text(
      model_.tokenizer().Decode({request.ids().data(), static_cast<size_t>(request.ids_size())},
                                /*skip_special=*/false));
  return out;
}

v1::ListModelsResponse Generator::ListModels() const {
  const std::optional<ModelInfo> info = routers_.model();
  v1::ListModelsResponse out;
  v1::Model* model = out.add_models();
  model->set_id(model_.name());
  model->set_created(model_.created());
  model->set_architecture(model_.architecture());
  model->set_max_model_len(info.has_value() ? info->max_model_len : 0);
  return out;
}

int Generator::FinishWithin(absl::Duration timeout) {
  BeginDrain();
  if (open_->WaitUntilNone(timeout)) return 0;
  int cut_off = 0;
  for (const auto& generation : open_->All()) {
    if (generation->Abort(Unavailable("the gateway is shutting down"))) ++cut_off;
  }
  return cut_off;
}

}  // namespace switchyard::gateway
