#include "gateway/api/openai_http.h"

#include <algorithm>

#include "absl/time/clock.h"
#include "gateway/api/admin_json.h"
#include "gateway/api/admin_service.h"
#include "gateway/api/authorization.h"
#include "gateway/api/errors.h"
#include "gateway/api/json_text.h"
#include "gateway/api/openai_answer.h"
#include "gateway/api/openai_json.h"
#include "gateway/streams/field_error.h"
#include "gateway/streams/request_id.h"
#include "nlohmann/json.hpp"
#include "services/base/clock.h"
#include "services/base/logging.h"
#include "services/base/status.h"

namespace switchyard::gateway {

using nlohmann::json;

namespace {

constexpr std::string_view kModelPath = "/v1/models/";

json ModelJson(const v1::Model& model) {
  return {{"id", model.id()},
          {"object", "model"},
          {"created", model.created()},
          {"owned_by", "switchyard"},
          {"max_model_len", model.max_model_len()},
          {"architecture", model.architecture()}};
}

AnswerFormat FormatOf(const ApiCall& call, const std::string& request_id, const ServedModel& model,
                      const std::optional<ModelInfo>& info) {
  const v1::GenerateRequest& first = call.requests[0];
  AnswerFormat format;
  format.chat = call.chat;
  format.stream = call.stream;
  format.include_usage = call.include_usage;
  format.request_id = request_id;
  format.model = model.name();
  format.created = absl::ToUnixSeconds(absl::Now());
  format.prompts = static_cast<int>(call.requests.size());
  // A number that the pipeline will refuse must not be allocated for.
  format.choices_per_prompt = std::clamp(first.n(), 1, kChoicesMax);
  format.logprobs = first.has_top_logprobs();
  format.token_ids = first.return_token_ids();
  format.routed_experts = first.return_routed_experts();
  format.stops.assign(first.stop().begin(), first.stop().end());
  format.stop_token_ids.assign(first.stop_token_ids().begin(), first.stop_token_ids().end());
  format.skip_special = !first.has_skip_special_tokens() || first.skip_special_tokens();
  format.tokenizer = &model.tokenizer();
  if (info.has_value()) {
    format.system_fingerprint = info->numerics_id;
    format.moe_top_k = std::max(1, info->top_k);
  }
  return format;
}

// Texts from outside are valid UTF-8 by then, but a peer's state line need not be.
std::string Dump(const json& value) {
  return value.dump(-1, ' ', false, json::error_handler_t::replace);
}

}  // namespace

OpenAiHttp::OpenAiHttp(Generator& generator, RouterClient& routers, GatewayMetrics& metrics,
                       OpenAiHttpOptions options)
    : generator_(generator),
      routers_(routers),
      metrics_(metrics),
      options_(std::move(options)),
      large_(options_.large_bodies_max) {
  for (int i = 0; i < options_.large_body_threads; ++i) {
    large_threads_.emplace_back([this] { WorkOnLargeBodies(); });
  }
}

OpenAiHttp::~OpenAiHttp() {
  stopping_ = true;
  large_.Close();
  for (std::thread& thread : large_threads_) thread.join();
  absl::MutexLock lock(&mutex_);
  mutex_.Await(absl::Condition(this, &OpenAiHttp::NoExpertsAsked));  // bounded by kAdminTimeout
}

void OpenAiHttp::WorkOnLargeBodies() {
  while (const auto work = large_.PopWait(absl::InfiniteDuration())) {
    if (!stopping_) (*work)();
  }
}

const OpenAiHttp::Route* OpenAiHttp::FindRoute(const HttpRequest& request, std::string* allowed) {
  static constexpr Route kRoutes[] = {
      {"POST", "/v1/chat/completions", true, &OpenAiHttp::Chat},
      {"POST", "/v1/completions", true, &OpenAiHttp::Completions},
      {"GET", "/v1/models", true, &OpenAiHttp::Models},
      {"GET", "/v1/models/*", true, &OpenAiHttp::Models},
      {"POST", "/tokenize", true, &OpenAiHttp::Tokenize},
      {"POST", "/detokenize", true, &OpenAiHttp::Detokenize},
      {"GET", "/health", false, &OpenAiHttp::Health},
      {"GET", "/ready", false, &OpenAiHttp::Ready},
      {"GET", "/metrics", true, &OpenAiHttp::Metrics},
      {"GET", "/admin/experts", true, &OpenAiHttp::Experts},
      {"GET", "/admin/placement", true, &OpenAiHttp::Placement},
  };
  for (const Route& route : kRoutes) {
    std::string_view path = route.path;
    const bool prefix = path.back() == '*';
    if (prefix) path.remove_suffix(1);
    if (prefix ? request.path.rfind(path, 0) != 0 || request.path.size() == path.size()
               : request.path != path) {
      continue;
    }
    if (request.method == route.method) return &route;
    *allowed += allowed->empty() ? "" : ", ";
    *allowed += route.method == std::string_view("GET") ? "GET, HEAD" : route.method;
  }
  return nullptr;
}

std::optional<HttpResponse> OpenAiHttp::Admit(Call& call, const Route** route) const {
  call.start = SteadyNow();
  const std::string_view given = call.request.Header("x-request-id");
  call.request_id = IsRequestId(given) ? std::string(given) : MakeRequestId();
  std::string allowed;
  *route = FindRoute(call.request, &allowed);
  if (*route == nullptr) {
    call.route = "other";
    HttpResponse response;
    response.status = allowed.empty() ? 404 : 405;
    response.body = ErrorJson(
        response.status,
        fmt::format("{} {}: {}", call.request.method, call.request.path,
                    allowed.empty() ? "no such path" : "the method is not allowed; use " + allowed),
        "", "", call.request_id);
    if (!allowed.empty()) response.headers.emplace_back("allow", allowed);
    return response;
  }
  call.route = (*route)->path;
  if (!(*route)->needs_key) return std::nullopt;
  auto key = Authorize(options_.keys, call.request.Header("authorization"));
  if (!key.ok()) {
    HttpResponse response = ErrorResponse(key.status(), call.request_id);
    response.headers.emplace_back("www-authenticate", "Bearer");
    return response;
  }
  call.fair_key = *std::move(key);
  return std::nullopt;
}

std::optional<HttpResponse> OpenAiHttp::RefuseHead(const HttpRequest& head) {
  Call call;
  call.request = head;
  const Route* route = nullptr;
  std::optional<HttpResponse> refusal = Admit(call, &route);
  if (!refusal.has_value()) return std::nullopt;
  refusal->headers.emplace_back("x-request-id", call.request_id);
  Ended(call, refusal->status);
  return refusal;
}

void OpenAiHttp::Handle(HttpRequest request, std::shared_ptr<HttpExchange> exchange) {
  auto call = std::make_shared<Call>();
  call->request = std::move(request);
  call->exchange = std::move(exchange);
  const Route* route = nullptr;
  if (auto refusal = Admit(*call, &route)) return Respond(call, *std::move(refusal));
  if (call->request.body.size() < options_.large_body_bytes) return (this->*route->serve)(call);
  const auto serve = route->serve;
  if (!large_.TryPush([this, serve, call] { (this->*serve)(call); })) {
    Respond(call, Unavailable("too many large requests wait; try again later"));
  }
}

HttpResponse OpenAiHttp::Refusal(int status, const std::string& message) {
  const std::string request_id = MakeRequestId();
  HttpResponse response;
  response.status = status;
  response.body = ErrorJson(status, message, "", "", request_id);
  response.headers.emplace_back("x-request-id", request_id);
  if (status == 503) response.headers.emplace_back("retry-after", "1");
  log::Info("request {}: refused {}: {}", request_id, status, message);
  return response;
}

void OpenAiHttp::Ended(const Call& call, int status) {
  const absl::Duration took = SteadyNow() - call.start;
  metrics_.RequestEnded("http", call.route, std::to_string(status), took);
  if (call.route == "/health" || call.route == "/ready" || call.route == "/metrics") return;
  log::Info("request {}: {} {} {} in {:.1f} ms", call.request_id, call.request.method, call.route,
            status, absl::ToDoubleMilliseconds(took));
}

void OpenAiHttp::Respond(const CallPtr& call, HttpResponse response) {
  response.headers.emplace_back("x-request-id", call->request_id);
  Ended(*call, response.status);
  call->exchange->Respond(std::move(response));
}

void OpenAiHttp::Respond(const CallPtr& call, const absl::Status& status) {
  Respond(call, ErrorResponse(status, call->request_id));
}

void OpenAiHttp::Health(CallPtr call) { Respond(call, HttpResponse{.body = R"({"status":"ok"})"}); }

void OpenAiHttp::Ready(CallPtr call) {
  const std::string missing = options_.missing();
  HttpResponse response;
  if (missing.empty()) {
    response.body = R"({"ready":true})";
  } else {
    response.status = 503;
    response.body = R"({"ready":false,"missing":)";
    AppendJsonString(missing, &response.body);
    response.body += '}';
  }
  Respond(call, std::move(response));
}

void OpenAiHttp::Metrics(CallPtr call) {
  HttpResponse response;
  response.content_type = "text/plain; version=0.0.4; charset=utf-8";
  response.body = metrics_.registry().Render();
  Respond(call, std::move(response));
}

void OpenAiHttp::Experts(CallPtr call) { AskRouters(call, ExpertsJson); }
void OpenAiHttp::Placement(CallPtr call) { AskRouters(call, PlacementJson); }

void OpenAiHttp::AskRouters(const CallPtr& call,
                            std::string (*to_json)(const std::vector<v1::RouterExperts>&)) {
  {
    absl::MutexLock lock(&mutex_);
    ++experts_asked_;
  }
  routers_.DescribeExperts(kAdminTimeout,
                           [this, call, to_json](const std::vector<v1::RouterExperts>& answers) {
                             Respond(call, HttpResponse{.body = to_json(answers)});
                             absl::MutexLock lock(&mutex_);
                             --experts_asked_;
                           });
}

void OpenAiHttp::Models(CallPtr call) {
  const v1::Model model = generator_.ListModels().models(0);
  if (call->request.path.size() <= kModelPath.size()) {
    return Respond(call,
                   HttpResponse{.body = Dump({{"object", "list"}, {"data", {ModelJson(model)}}})});
  }
  const absl::Status known =
      generator_.model().CheckName(std::string_view(call->request.path).substr(kModelPath.size()));
  if (!known.ok()) return Respond(call, known);
  Respond(call, HttpResponse{.body = Dump(ModelJson(model))});
}

void OpenAiHttp::Tokenize(CallPtr call) {
  const auto request = ParseTokenizeCall(call->request.body);
  if (!request.ok()) return Respond(call, request.status());
  const auto result = generator_.Tokenize(*request);
  if (!result.ok()) return Respond(call, result.status());
  HttpResponse response;
  response.body = fmt::format("{{\"count\":{},\"max_model_len\":{},\"tokens\":[",
                              result->ids_size(), result->max_model_len());
  for (int i = 0; i < result->ids_size(); ++i) {
    if (i > 0) response.body += ',';
    AppendJsonInt(result->ids(i), &response.body);
  }
  response.body += "]}";
  Respond(call, std::move(response));
}

void OpenAiHttp::Detokenize(CallPtr call) {
  const auto request = ParseDetokenizeCall(call->request.body);
  if (!request.ok()) return Respond(call, request.status());
  const auto result = generator_.Detokenize(*request);
  if (!result.ok()) return Respond(call, result.status());
  HttpResponse response;
  response.body = "{\"prompt\":";
  AppendJsonString(result->text(), &response.body);
  response.body += '}';
  Respond(call, std::move(response));
}

void OpenAiHttp::Chat(CallPtr call) { Generate(call, true); }
void OpenAiHttp::Completions(CallPtr call) { Generate(call, false); }

void OpenAiHttp::Generate(const CallPtr& call, bool chat) {
  const auto parsed =
      chat ? ParseChatCall(call->request.body) : ParseCompletionCall(call->request.body);
  if (!parsed.ok()) return Respond(call, parsed.status());
  if (const std::string& id = parsed->requests[0].request_id(); !id.empty()) {
    if (!IsRequestId(id)) {
      return Respond(call, FieldError("request_id",
                                      "expected 1 to 128 letters, digits, '-', '_', "
                                      "'.' and ':'"));
    }
    if (call->request.Header("x-request-id").empty()) call->request_id = id;
  }
  std::string().swap(call->request.body);  // a long stream need not keep it
  call->request.body_hold = nullptr;
  auto answer = std::make_shared<OpenAiAnswer>(
      FormatOf(*parsed, call->request_id, generator_.model(), routers_.model()), call->exchange,
      [this, call](int status) { Ended(*call, status); });
  std::vector<std::weak_ptr<Generation>> started;
  CallContext context;
  context.request_id = call->request_id;
  context.fair_key = call->fair_key;
  context.deadline = call->start + options_.request_timeout;
  for (size_t i = 0; i < parsed->requests.size(); ++i) {
    auto generation =
        generator_.Start(parsed->requests[i], context, answer->Sink(static_cast<int>(i)));
    if (!generation.ok()) {
      answer->Fail(generation.status());
      break;
    }
    started.push_back(*generation);
  }
  answer->Watch(std::move(started));
}

}  // namespace switchyard::gateway
