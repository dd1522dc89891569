// OpenAI's HTTP API (with vLLM's extensions), health, metrics and the admin page over the one
// pipeline. The handler of the HTTP server: runs on its io threads, so large bodies are worked on
// by a few threads of its own.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "gateway/api/gateway_metrics.h"
#include "gateway/api/http_types.h"
#include "gateway/streams/generator.h"
#include "gateway/upstream/router_client.h"
#include "services/base/bounded_queue.h"
#include "services/security/keys.h"

namespace switchyard::gateway {

struct OpenAiHttpOptions {
  const security::KeySet* keys = nullptr;  // null: no key is asked for
  // Why requests are not taken, empty if they are.
  std::function<std::string()> missing;
  size_t large_body_bytes = 32 << 10;  // from here on other threads parse and tokenise
  size_t large_bodies_max = 64;        // that wait for them; one more is 503
  int large_body_threads = 2;
  // From a request to its end: the routers end it then, with a 504. The server's own limit cuts it
  // off without a word, so this one is a little less.
  absl::Duration request_timeout = absl::InfiniteDuration();
};

class OpenAiHttp final : public HttpHandler {
 public:
  // All outlive it, and the server that calls it is stopped before it goes.
  OpenAiHttp(Generator& generator, RouterClient& routers, GatewayMetrics& metrics,
             OpenAiHttpOptions options);
  ~OpenAiHttp() override;

  void Handle(HttpRequest request, std::shared_ptr<HttpExchange> exchange) override;
  // What is wrong with path, method or key is said without reading a body.
  std::optional<HttpResponse> RefuseHead(const HttpRequest& head) override;
  HttpResponse Refusal(int status, const std::string& message) override;

 private:
  struct Call {
    HttpRequest request;
    std::shared_ptr<HttpExchange> exchange;
    std::string request_id;
    std::string fair_key;
    std::string route;  // as metrics and logs name it
    absl::Time start;
  };
  using CallPtr = std::shared_ptr<Call>;
  struct Route {
    const char* method;
    const char* path;
    bool needs_key;
    void (OpenAiHttp::*serve)(CallPtr);
  };

  // Null, and then `allowed` has the methods that the path has (none: no such path).
  static const Route* FindRoute(const HttpRequest& request, std::string* allowed);
  // Fills the call's id, route and fair-share key. An answer if it is refused.
  std::optional<HttpResponse> Admit(Call& call, const Route** route) const;
  void Health(CallPtr call);
  void Ready(CallPtr call);
  void Metrics(CallPtr call);
  void Experts(CallPtr call);
  void Placement(CallPtr call);
  void AskRouters(const CallPtr& call,
                  std::string (*to_json)(const std::vector<v1::RouterExperts>&));
  void Models(CallPtr call);
  void Chat(CallPtr call);
  void Completions(CallPtr call);
  void Tokenize(CallPtr call);
  void Detokenize(CallPtr call);
  void Generate(const CallPtr& call, bool chat);

  void Respond(const CallPtr& call, HttpResponse response);
  void Respond(const CallPtr& call, const absl::Status& status);
  void Ended(const Call& call, int status);
  void WorkOnLargeBodies();
  bool NoExpertsAsked() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return experts_asked_ == 0; }

  Generator& generator_;
  RouterClient& routers_;
  GatewayMetrics& metrics_;
  const OpenAiHttpOptions options_;
  BoundedQueue<std::function<void()>> large_;
  std::atomic<bool> stopping_{false};
  std::vector<std::thread> large_threads_;
  absl::Mutex mutex_;
  int experts_asked_ ABSL_GUARDED_BY(mutex_) = 0;  // whose answer is to come
};

}  // namespace switchyard::gateway
