// Turns the chunks of one or several generations (one a prompt) into one OpenAI answer: a JSON
// object, or server-sent events. The HTTP status is decided when the first chunk or the error is
// there, so a stream that is refused is refused with its own code.
//
// Owned by the sinks of its generations. Thread-safe: generations run on different threads.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "gateway/api/http_types.h"
#include "gateway/streams/generation.h"

namespace switchyard::gateway {

struct AnswerFormat {
  bool chat = false;
  bool stream = false;
  bool include_usage = false;  // of a stream
  std::string request_id;
  std::string model;
  std::string system_fingerprint;  // the numerics id
  int64_t created = 0;
  int prompts = 1;
  int choices_per_prompt = 1;
  bool logprobs = false;
  bool token_ids = false;
  bool routed_experts = false;
  int moe_top_k = 1;  // of routed experts
  // Of a whole answer (n × tokens × alternatives could be any size).
  size_t whole_bytes_max = 64 << 20;
  // Of the request: tell a stop reason that is a token id from one that is a string.
  std::vector<std::string> stops;
  std::vector<int32_t> stop_token_ids;
  bool skip_special = true;
  const Tokenizer* tokenizer = nullptr;  // with logprobs; outlives the answer
};

// One choice as JSON in the making. A stream clears it after each chunk.
struct ChoiceJson {
  std::string text;
  std::string reasoning;
  std::string token_ids;  // "1,2,3"
  std::string routed;     // objects
  // Chat: `tokens` has whole objects. Completions: one list each.
  std::string tokens, token_logprobs, top_logprobs, text_offsets;
  std::string finish_reason, error;
  const char* degraded = "";
  std::string stop_reason;  // a JSON string or a token id; empty: none
  int64_t text_offset = 0;  // characters of the text of all tokens so far
  bool announced = false;   // the role was sent
};

class OpenAiAnswer : public std::enable_shared_from_this<OpenAiAnswer> {
 public:
  // `on_end` is called once with the HTTP status when the answer is complete or the client has gone
  // (499).
  OpenAiAnswer(AnswerFormat format, std::shared_ptr<HttpExchange> exchange,
               std::function<void(int)> on_end);

  // The sink of prompt `prompt`.
  std::shared_ptr<ChunkSink> Sink(int prompt);
  // Those to cancel if the client leaves or one of them fails. Call once, after all were started.
  void Watch(std::vector<std::weak_ptr<Generation>> generations);
  // One could not be started.
  void Fail(const absl::Status& status, int retry_after_ms = 0);

 private:
  friend class AnswerSink;
  bool OnChunk(int prompt, const v1::GenerateResponse& chunk);
  void OnEnd(int prompt, const absl::Status& status, int retry_after_ms);
  void OnGone();
  void End(int http_status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool WriteChunk(int prompt, const v1::GenerateResponse& chunk)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void RespondError(const absl::Status& status, int retry_after_ms)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void RespondWhole() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void EndStream() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool Send() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void AddChoice(const v1::Choice& choice, ChoiceJson* to) const;
  bool IsHidden(const v1::TokenLogprob& entry) const;
  std::string StopReason(const v1::Choice& choice) const;
  void AddLogprob(const v1::TokenLogprob& entry, ChoiceJson* to) const;
  void AppendHead(std::string* out) const;
  void AppendChoice(int index, ChoiceJson& choice, std::string* out) const;
  void AppendLogprobs(const ChoiceJson& choice, std::string* out) const;
  void CancelAll();

  const AnswerFormat format_;
  const std::shared_ptr<HttpExchange> exchange_;
  std::string head_;  // what every object begins with

  absl::Mutex mutex_;
  std::function<void(int)> on_end_ ABSL_GUARDED_BY(mutex_);
  std::vector<ChoiceJson> choices_ ABSL_GUARDED_BY(mutex_);
  std::vector<std::string> prompt_ids_ ABSL_GUARDED_BY(mutex_);  // of prompts, whole answers
  std::string moe_layers_ ABSL_GUARDED_BY(mutex_);
  v1::Usage usage_ ABSL_GUARDED_BY(mutex_);
  int ended_ ABSL_GUARDED_BY(mutex_) = 0;
  bool started_ ABSL_GUARDED_BY(mutex_) = false;  // the head of a stream was sent
  bool over_ ABSL_GUARDED_BY(mutex_) = false;
  size_t held_bytes_ ABSL_GUARDED_BY(mutex_) = 0;  // of a whole answer
  std::string out_ ABSL_GUARDED_BY(mutex_);        // reused
  std::vector<std::weak_ptr<Generation>> generations_ ABSL_GUARDED_BY(mutex_);
};

void AppendUsage(const v1::Usage& usage, std::string* out);

}  // namespace switchyard::gateway
