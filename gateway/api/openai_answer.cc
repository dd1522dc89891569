#include "gateway/api/openai_answer.h"

#include <algorithm>
#include <utility>

#include "gateway/api/errors.h"
#include "gateway/api/json_text.h"
#include "services/base/status.h"

namespace switchyard::gateway {
namespace {

std::string_view FinishName(v1::FinishReason reason) {
  switch (reason) {
    case v1::FINISH_REASON_STOP:
      return "stop";
    case v1::FINISH_REASON_LENGTH:
      return "length";
    case v1::FINISH_REASON_ERROR:
      return "error";
    default:
      return "";
  }
}

void Comma(std::string* list) {
  if (!list->empty()) list->push_back(',');
}

// [a,b],[c,d]: `values` in rows of `width`.
template <typename Values, typename Append>
void AppendRows(const Values& values, int width, Append append, std::string* out) {
  for (int i = 0; i < values.size(); ++i) {
    if (i % width == 0) *out += i == 0 ? "[" : "],[";
    if (i % width != 0) out->push_back(',');
    append(values[i], out);
  }
  if (!values.empty()) out->push_back(']');
}

// {"token":logprob,…}. Tokens may look alike (parts of characters do): a key stands once, with the
// best of them.
void AppendTopByToken(const v1::TokenLogprob& entry, std::string* out) {
  std::vector<std::pair<std::string, float>> best;
  for (const v1::TokenLogprob& top : entry.top()) {
    std::string key;
    AppendJsonString(top.token(), &key);
    const auto same = std::find_if(best.begin(), best.end(),
                                   [&](const auto& known) { return known.first == key; });
    if (same == best.end()) {
      best.emplace_back(std::move(key), top.logprob());
    } else {
      same->second = std::max(same->second, top.logprob());
    }
  }
  *out += '{';
  for (size_t i = 0; i < best.size(); ++i) {
    if (i > 0) *out += ',';
    *out += best[i].first + ':';
    AppendJsonFloat(best[i].second, out);
  }
  *out += '}';
}

int64_t CountCharacters(std::string_view bytes) {
  int64_t count = 0;
  for (const char c : bytes) count += (static_cast<unsigned char>(c) & 0xC0) != 0x80;
  return count;
}

}  // namespace

void AppendUsage(const v1::Usage& usage, std::string* out) {
  fmt::format_to(std::back_inserter(*out),
                 "{{\"prompt_tokens\":{},\"completion_tokens\":{},\"total_tokens\":{},"
                 "\"prompt_tokens_details\":{{\"cached_tokens\":{}}},"
                 "\"completion_tokens_details\":{{\"reasoning_tokens\":{}}}}}",
                 usage.prompt_tokens(), usage.completion_tokens(),
                 usage.prompt_tokens() + usage.completion_tokens(), usage.cached_tokens(),
                 usage.reasoning_tokens());
}

class AnswerSink final : public ChunkSink {
 public:
  AnswerSink(std::shared_ptr<OpenAiAnswer> answer, int prompt)
      : answer_(std::move(answer)), prompt_(prompt) {}
  bool OnChunk(const v1::GenerateResponse& chunk) override {
    return answer_->OnChunk(prompt_, chunk);
  }
  void OnEnd(const absl::Status& status, int retry_after_ms) override {
    answer_->OnEnd(prompt_, status, retry_after_ms);
  }

 private:
  const std::shared_ptr<OpenAiAnswer> answer_;
  const int prompt_;
};

OpenAiAnswer::OpenAiAnswer(AnswerFormat format, std::shared_ptr<HttpExchange> exchange,
                           std::function<void(int)> on_end)
    : format_(std::move(format)), exchange_(std::move(exchange)), on_end_(std::move(on_end)) {
  AppendHead(&head_);
  choices_.resize(static_cast<size_t>(format_.prompts) * format_.choices_per_prompt);
  prompt_ids_.resize(format_.prompts);
}

std::shared_ptr<ChunkSink> OpenAiAnswer::Sink(int prompt) {
  return std::make_shared<AnswerSink>(shared_from_this(), prompt);
}

void OpenAiAnswer::Watch(std::vector<std::weak_ptr<Generation>> generations) {
  bool over;
  {
    absl::MutexLock lock(&mutex_);
    generations_ = std::move(generations);
    over = over_;
  }
  if (over) return CancelAll();
  exchange_->OnGone([self = shared_from_this()] { self->OnGone(); });
}

void OpenAiAnswer::CancelAll() {
  std::vector<std::weak_ptr<Generation>> all;
  {
    absl::MutexLock lock(&mutex_);
    all.swap(generations_);
  }
  for (const auto& weak : all) {
    if (const auto generation = weak.lock()) generation->Cancel();
  }
}

void OpenAiAnswer::OnGone() {
  {
    absl::MutexLock lock(&mutex_);
    if (!over_) End(499);
  }
  CancelAll();
}

void OpenAiAnswer::Fail(const absl::Status& status, int retry_after_ms) {
  {
    absl::MutexLock lock(&mutex_);
    if (over_) return;
    End(HttpStatusOf(status.code()));
    if (!started_) {
      RespondError(status, retry_after_ms);
    } else {
      out_ += "data: " + ErrorJson(status, format_.request_id) + "\n\ndata: [DONE]\n\n";
      Send();
      exchange_->End();
    }
  }
}

void OpenAiAnswer::RespondError(const absl::Status& status, int retry_after_ms) {
  HttpResponse response = ErrorResponse(status, format_.request_id, retry_after_ms);
  response.headers.emplace_back("x-request-id", format_.request_id);
  exchange_->Respond(std::move(response));
}

// Before the last bytes go out: who has read them finds the request counted.
void OpenAiAnswer::End(int http_status) {
  over_ = true;
  if (on_end_) on_end_(http_status);
  on_end_ = nullptr;
}

bool OpenAiAnswer::OnChunk(int prompt, const v1::GenerateResponse& chunk) {
  absl::MutexLock lock(&mutex_);
  if (over_) return false;
  if (chunk.has_usage()) {
    const v1::Usage& u = chunk.usage();
    usage_.set_prompt_tokens(usage_.prompt_tokens() + u.prompt_tokens());
    usage_.set_completion_tokens(usage_.completion_tokens() + u.completion_tokens());
    usage_.set_cached_tokens(usage_.cached_tokens() + u.cached_tokens());
    usage_.set_reasoning_tokens(usage_.reasoning_tokens() + u.reasoning_tokens());
  }
  for (const int32_t layer : chunk.moe_layers()) {
    if (prompt > 0) break;
    Comma(&moe_layers_);
    AppendJsonInt(layer, &moe_layers_);
  }
  if (format_.stream) return WriteChunk(prompt, chunk);
  for (const int32_t id : chunk.prompt_token_ids()) {
    Comma(&prompt_ids_[prompt]);
    AppendJsonInt(id, &prompt_ids_[prompt]);
  }
  held_bytes_ += chunk.ByteSizeLong();
  for (const v1::Choice& choice : chunk.choices()) {
    AddChoice(choice, &choices_[prompt * format_.choices_per_prompt + choice.index()]);
  }
  if (held_bytes_ <= format_.whole_bytes_max) return true;
  // Not a 429, which clients try again: the same request would be as large.
  const absl::Status status = InvalidArgument(
      "the answer is larger than {} MiB; ask for it as a stream", format_.whole_bytes_max >> 20);
  End(HttpStatusOf(status.code()));
  RespondError(status, 0);
  return false;
}

void OpenAiAnswer::OnEnd(int, const absl::Status& status, int retry_after_ms) {
  if (!status.ok()) {
    Fail(status, retry_after_ms);
    // Not from here: this generation's own lock is held. Others of the request are let go when they
    // bring their next chunk, which is refused.
    return;
  }
  absl::MutexLock lock(&mutex_);
  if (over_ || ++ended_ < format_.prompts) return;
  End(200);
  if (format_.stream) {
    EndStream();
  } else {
    RespondWhole();
  }
}

// ------------------------------------------------------------------- writing

void OpenAiAnswer::AppendHead(std::string* out) const {
  const char* object = !format_.chat    ? "text_completion"
                       : format_.stream ? "chat.completion.chunk"
                                        : "chat.completion";
  *out += "{\"id\":";
  AppendJsonString((format_.chat ? "chatcmpl-" : "cmpl-") + format_.request_id, out);
  fmt::format_to(std::back_inserter(*out), ",\"object\":\"{}\",\"created\":{},\"model\":", object,
                 format_.created);
  AppendJsonString(format_.model, out);
  *out += ",\"system_fingerprint\":";
  if (format_.system_fingerprint.empty()) {
    *out += "null";
  } else {
    AppendJsonString(format_.system_fingerprint, out);
  }
  *out += ",\"choices\":[";
}

// A special token that is left out of the text, or that the tokenizer put before an echoed prompt.
// (The token that ends a text is not in it either, but nothing comes after it.)
bool OpenAiAnswer::IsHidden(const v1::TokenLogprob& entry) const {
  return format_.tokenizer != nullptr && (format_.skip_special || entry.none()) &&
         format_.tokenizer->IsSpecial(entry.id());
}

std::string OpenAiAnswer::StopReason(const v1::Choice& choice) const {
  const std::string& reason = choice.stop_reason();
  std::string out;
  if (reason.empty()) return out;
  const auto& stops = format_.stops;
  if (std::find(stops.begin(), stops.end(), reason) == stops.end()) {
    for (const int32_t id : format_.stop_token_ids) {
      if (std::to_string(id) == reason) return reason;
    }
  }
  AppendJsonString(reason, &out);
  return out;
}

void OpenAiAnswer::AddLogprob(const v1::TokenLogprob& entry, ChoiceJson* to) const {
  const auto float_or_null = [](const v1::TokenLogprob& e, std::string* out) {
    if (e.none()) {
      *out += "null";
    } else {
      AppendJsonFloat(e.logprob(), out);
    }
  };
  Comma(&to->tokens);
  if (!format_.chat) {
    AppendJsonString(entry.token(), &to->tokens);
    Comma(&to->token_logprobs);
    float_or_null(entry, &to->token_logprobs);
    Comma(&to->text_offsets);
    AppendJsonInt(to->text_offset, &to->text_offsets);
    if (!IsHidden(entry)) to->text_offset += CountCharacters(entry.token());
    Comma(&to->top_logprobs);
    if (entry.none()) {
      to->top_logprobs += "null";
      return;
    }
    AppendTopByToken(entry, &to->top_logprobs);
    return;
  }
  const auto append_token = [&](const v1::TokenLogprob& e, std::string* out) {
    *out += "{\"token\":";
    AppendJsonString(e.token(), out);
    *out += ",\"logprob\":";
    float_or_null(e, out);
    *out += ",\"bytes\":[";
    for (size_t i = 0; i < e.token().size(); ++i) {
      if (i > 0) *out += ',';
      AppendJsonInt(static_cast<unsigned char>(e.token()[i]), out);
    }
    *out += ']';
  };
  append_token(entry, &to->tokens);
  to->tokens += ",\"top_logprobs\":[";
  for (int i = 0; i < entry.top_size(); ++i) {
    if (i > 0) to->tokens += ',';
    append_token(entry.top(i), &to->tokens);
    to->tokens += '}';
  }
  to->tokens += "]}";
}

void OpenAiAnswer::AddChoice(const v1::Choice& choice, ChoiceJson* to) const {
  to->text += choice.text();
  to->reasoning += choice.reasoning_content();
  for (const int32_t id : choice.token_ids()) {
    Comma(&to->token_ids);
    AppendJsonInt(id, &to->token_ids);
  }
  for (const v1::TokenLogprob& entry : choice.logprobs()) AddLogprob(entry, to);
  for (const v1::RoutedExperts& routed : choice.routed_experts()) {
    Comma(&to->routed);
    fmt::format_to(std::back_inserter(to->routed), "{{\"position\":{},\"experts\":[",
                   routed.position());
    AppendRows(routed.experts(), format_.moe_top_k, AppendJsonInt, &to->routed);
    to->routed += "],\"weights\":[";
    AppendRows(routed.weights(), format_.moe_top_k, AppendJsonFloat, &to->routed);
    to->routed += "]}";
  }
  to->degraded = NameOf(choice.degraded());
  if (choice.finish_reason() != v1::FINISH_REASON_UNSPECIFIED) {
    to->finish_reason = FinishName(choice.finish_reason());
    to->stop_reason = StopReason(choice);
    to->error = choice.error();
  }
}

void OpenAiAnswer::AppendLogprobs(const ChoiceJson& choice, std::string* out) const {
  if (!format_.logprobs || choice.tokens.empty()) {
    *out += ",\"logprobs\":null";
  } else if (format_.chat) {
    *out += ",\"logprobs\":{\"content\":[" + choice.tokens + "],\"refusal\":null}";
  } else {
    *out += ",\"logprobs\":{\"tokens\":[" + choice.tokens + "],\"token_logprobs\":[" +
            choice.token_logprobs + "],\"top_logprobs\":[" + choice.top_logprobs +
            "],\"text_offset\":[" + choice.text_offsets + "]}";
  }
}

void OpenAiAnswer::AppendChoice(int index, ChoiceJson& choice, std::string* out) const {
  *out += "{\"index\":";
  AppendJsonInt(index, out);
  if (!format_.chat) {
    *out += ",\"text\":";
    AppendJsonString(choice.text, out);
  } else if (format_.stream) {
    *out += ",\"delta\":{";
    const char* comma = "";
    if (!choice.announced) {
      *out += "\"role\":\"assistant\"";
      comma = ",";
    }
    if (!choice.reasoning.empty()) {
      *out += comma;
      *out += "\"reasoning_content\":";
      AppendJsonString(choice.reasoning, out);
      comma = ",";
    }
    if (!choice.text.empty() || (!choice.announced && choice.reasoning.empty())) {
      *out += comma;
      *out += "\"content\":";
      AppendJsonString(choice.text, out);
    }
    *out += '}';
    choice.announced = true;
  } else {
    *out += ",\"message\":{\"role\":\"assistant\",\"content\":";
    AppendJsonString(choice.text, out);
    if (!choice.reasoning.empty()) {
      *out += ",\"reasoning_content\":";
      AppendJsonString(choice.reasoning, out);
    }
    *out += ",\"refusal\":null}";
  }
  AppendLogprobs(choice, out);
  *out += ",\"finish_reason\":";
  *out += choice.finish_reason.empty() ? "null" : '"' + choice.finish_reason + '"';
  if (!choice.stop_reason.empty()) {
    *out += ",\"stop_reason\":" + choice.stop_reason;
  }
  if (*choice.degraded != '\0')
    fmt::format_to(std::back_inserter(*out), ",\"degraded\":\"{}\"", choice.degraded);
  if (!choice.error.empty()) {
    *out += ",\"error\":";
    AppendJsonString(choice.error, out);
  }
  if (format_.token_ids) *out += ",\"token_ids\":[" + choice.token_ids + ']';
  if (format_.routed_experts) *out += ",\"routed_experts\":[" + choice.routed + ']';
  *out += '}';
}

bool OpenAiAnswer::WriteChunk(int prompt, const v1::GenerateResponse& chunk) {
  for (const v1::Choice& part : chunk.choices()) {
    const int index = prompt * format_.choices_per_prompt + part.index();
    ChoiceJson& choice = choices_[index];
    AddChoice(part, &choice);
    out_ += "data: ";
    out_ += head_;
    AppendChoice(index, choice, &out_);
    out_ += ']';
    if (format_.include_usage) out_ += ",\"usage\":null";
    if (chunk.prompt_token_ids_size() > 0) {
      out_ += ",\"prompt_token_ids\":[";
      for (int i = 0; i < chunk.prompt_token_ids_size(); ++i) {
        if (i > 0) out_ += ',';
        AppendJsonInt(chunk.prompt_token_ids(i), &out_);
      }
      out_ += ']';
    }
    if (chunk.moe_layers_size() > 0) out_ += ",\"moe_layers\":[" + moe_layers_ + ']';
    out_ += "}\n\n";
    choice.text.clear();
    choice.reasoning.clear();
    for (std::string* text : {&choice.token_ids, &choice.routed, &choice.tokens,
                              &choice.token_logprobs, &choice.top_logprobs, &choice.text_offsets}) {
      text->clear();
    }
  }
  return Send();
}

bool OpenAiAnswer::Send() {
  bool taken = true;
  if (!started_) {
    started_ = true;
    HttpResponse head;
    head.content_type = "text/event-stream; charset=utf-8";
    head.headers = {{"cache-control", "no-cache"},
                    {"x-accel-buffering", "no"},
                    {"x-request-id", format_.request_id}};
    head.body = out_;
    exchange_->StartStream(std::move(head));
  } else {
    taken = exchange_->Write(out_);
  }
  out_.clear();
  return taken;
}

void OpenAiAnswer::EndStream() {
  if (format_.include_usage) {
    out_ += "data: " + head_ + "],\"usage\":";
    AppendUsage(usage_, &out_);
    out_ += "}\n\n";
  }
  out_ += "data: [DONE]\n\n";
  Send();
  exchange_->End();
}

void OpenAiAnswer::RespondWhole() {
  HttpResponse response;
  response.headers.emplace_back("x-request-id", format_.request_id);
  std::string& out = response.body;
  out = head_;
  for (size_t i = 0; i < choices_.size(); ++i) {
    if (i > 0) out += ',';
    AppendChoice(static_cast<int>(i), choices_[i], &out);
  }
  out += "],\"usage\":";
  AppendUsage(usage_, &out);
  if (format_.token_ids && format_.prompts == 1) {
    out += ",\"prompt_token_ids\":[" + prompt_ids_[0] + ']';
  }
  if (format_.routed_experts) out += ",\"moe_layers\":[" + moe_layers_ + ']';
  out += '}';
  exchange_->Respond(std::move(response));
}

}  // namespace switchyard::gateway
