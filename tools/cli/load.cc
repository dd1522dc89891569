#include "tools/cli/load.h"

#include <curl/curl.h>
#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <memory>

#include "services/base/status.h"
#include "tools/cli/sse_parser.h"

namespace switchyard::cli {
namespace {

using Clock = std::chrono::steady_clock;

constexpr double kNever = 1e300;

// A stream is a socket, and many systems allow a process 1,024 of them unless it asks for more.
void AllowSockets(int streams) {
  rlimit limit = {};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  const rlim_t wanted = std::min<rlim_t>(limit.rlim_max, static_cast<rlim_t>(streams) + 256);
  if (limit.rlim_cur >= wanted) return;
  limit.rlim_cur = wanted;
  setrlimit(RLIMIT_NOFILE, &limit);  // where it fails, the connections that do say so
}

// One open request.
class Load;
struct Stream {
  Load* load = nullptr;
  CURL* curl = nullptr;
  std::string body;
  SseParser sse;
  std::string error_body;
  RequestRecord record;
  double last_token_s = 0;
  size_t index = 0;  // of its record
};

class Load {
 public:
  Load(const LoadOptions& options, const std::vector<nlohmann::json>& prompts)
      : options_(options),
        target_(TargetOf(options.http.url)),
        prompts_(prompts),
        multi_(curl_multi_init()),
        random_(options.seed) {
    records_.resize(options.requests);
    headers_ = curl_slist_append(nullptr, "Content-Type: application/json");
    headers_ = curl_slist_append(headers_, "Expect:");
    if (!options.http.api_key.empty()) {
      headers_ =
          curl_slist_append(headers_, ("Authorization: Bearer " + options.http.api_key).c_str());
    }
    curl_multi_setopt(multi_, CURLMOPT_MAXCONNECTS, static_cast<long>(options.streams()));
    AllowSockets(options.streams());
  }

  ~Load() {
    for (auto& stream : open_) Close(*stream);
    curl_slist_free_all(headers_);
    curl_multi_cleanup(multi_);
  }

  std::vector<RequestRecord> Run(const std::function<void(const LoadProgress&)>& progress) {
    double next_report = 0.5;
    while (done_ < options_.requests) {
      while (NextStart() <= Now()) Start();
      int running = 0;
      curl_multi_perform(multi_, &running);
      if (Reap()) continue;  // the next may start at once
      if (Now() >= next_report) {
        progress({done_, static_cast<int>(open_.size()), output_tokens_, Now()});
        next_report = Now() + 0.5;
      }
      const double wait_ms = std::clamp((NextStart() - Now()) * 1e3, 0.0, 200.0);
      curl_multi_poll(multi_, nullptr, 0, static_cast<int>(wait_ms), nullptr);
    }
    return std::move(records_);
  }

 private:
  double Now() const { return std::chrono::duration<double>(Clock::now() - began_).count(); }

  bool Full() const { return static_cast<int>(open_.size()) >= options_.streams(); }

  // When the next request may be sent, if none of those that are open ends before.
  double NextStart() const {
    if (started_ == options_.requests || Full()) return kNever;
    return options_.rate > 0 ? next_arrival_ : 0;
  }

  // When the request that is sent now arrived.
  void Arrive(RequestRecord& record) {
    record.start_s = Now();
    if (options_.rate <= 0) return;
    if (next_arrival_ < last_full_) record.delay_ms = (record.start_s - next_arrival_) * 1e3;
    record.start_s = next_arrival_;
    next_arrival_ += std::exponential_distribution<double>(options_.rate)(random_);
  }

  void Start() {
    auto stream = std::make_unique<Stream>();
    stream->load = this;
    stream->index = started_;
    stream->body = nlohmann::json{{"model", options_.model},
                                  {"prompt", prompts_[started_ % prompts_.size()]},
                                  {"max_tokens", options_.max_tokens},
                                  {"temperature", 0},
                                  {"ignore_eos", options_.ignore_eos},
                                  {"return_token_ids", true},
                                  {"stream", true},
                                  {"stream_options", {{"include_usage", true}}}}
                       .dump();
    ++started_;
    CURL* curl = stream->curl = curl_easy_init();
    const std::string url = target_.base + "/v1/completions";
    curl_easy_setopt(curl, CURLOPT_URL, url.c_str());
    curl_easy_setopt(curl, CURLOPT_HTTPHEADER, headers_);
    curl_easy_setopt(curl, CURLOPT_POSTFIELDSIZE, static_cast<long>(stream->body.size()));
    curl_easy_setopt(curl, CURLOPT_POSTFIELDS, stream->body.c_str());
    curl_easy_setopt(curl, CURLOPT_PRIVATE, stream.get());
    curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, &Load::OnBytes);
    curl_easy_setopt(curl, CURLOPT_WRITEDATA, stream.get());
    curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(curl, CURLOPT_NOPROXY, "127.0.0.1,localhost,::1");
    if (!target_.socket.empty()) {
      curl_easy_setopt(curl, CURLOPT_UNIX_SOCKET_PATH, target_.socket.c_str());
    }
    if (!options_.http.ca_file.empty()) {
      curl_easy_setopt(curl, CURLOPT_CAINFO, options_.http.ca_file.c_str());
    }
    Arrive(stream->record);
    curl_multi_add_handle(multi_, curl);
    open_.push_back(std::move(stream));
  }

  static size_t OnBytes(char* data, size_t size, size_t count, void* user) {
    auto* const stream = static_cast<Stream*>(user);
    const std::string_view bytes(data, size * count);
    long code = 0;
    curl_easy_getinfo(stream->curl, CURLINFO_RESPONSE_CODE, &code);
    if (code != 200) {
      if (stream->error_body.size() < 4096) stream->error_body += bytes;
    } else {
      stream->sse.Feed(
          bytes, [&](std::string_view event) { return stream->load->OnEvent(*stream, event); });
    }
    return bytes.size();
  }

  bool OnEvent(Stream& stream, std::string_view event) {
    if (event == "[DONE]") return true;
    const auto json = nlohmann::json::parse(event, nullptr, /*allow_exceptions=*/false);
    if (!json.is_object()) return true;
    if (json.contains("error")) stream.record.error = ErrorText(event);
    if (const auto usage = json.find("usage"); usage != json.end() && usage->is_object()) {
      const auto count = [&usage](const char* name) -> int64_t {
        const auto found = usage->find(name);
        return found != usage->end() && found->is_number_integer() ? found->get<int64_t>() : 0;
      };
      stream.record.prompt_tokens = count("prompt_tokens");
      const int64_t counted = count("completion_tokens");
      output_tokens_ += counted - stream.record.output_tokens;
      stream.record.output_tokens = counted;
    }
    if (const auto choices = json.find("choices"); choices != json.end()) {
      for (const auto& choice : *choices) CountTokens(stream, choice);
    }
    return true;
  }

  // Servers that do not return token ids count one token a chunk of text, until usage corrects it.
  void CountTokens(Stream& stream, const nlohmann::json& choice) {
    int64_t tokens = 0;
    if (const auto ids = choice.find("token_ids"); ids != choice.end() && ids->is_array()) {
      tokens = static_cast<int64_t>(ids->size());
    } else if (const auto text = choice.find("text"); text != choice.end() && text->is_string()) {
      tokens = text->get_ref<const std::string&>().empty() ? 0 : 1;
    }
    if (tokens == 0) return;
    const double now = Now();
    RequestRecord& record = stream.record;
    if (record.first_token_s < 0) {
      record.first_token_s = now;
    } else {
      const auto gap = static_cast<float>((now - stream.last_token_s) * 1e3 / tokens);
      record.token_gaps_ms.insert(record.token_gaps_ms.end(), tokens, gap);
    }
    stream.last_token_s = now;
    record.output_tokens += tokens;
    output_tokens_ += tokens;
  }

  // Whether any stream ended.
  bool Reap() {
    int left = 0;
    const int before = done_;
    while (const CURLMsg* message = curl_multi_info_read(multi_, &left)) {
      if (message->msg != CURLMSG_DONE) continue;
      Stream* stream = nullptr;
      curl_easy_getinfo(message->easy_handle, CURLINFO_PRIVATE, &stream);
      long code = 0;
      curl_easy_getinfo(message->easy_handle, CURLINFO_RESPONSE_CODE, &code);
      RequestRecord& record = stream->record;
      record.end_s = Now();
      if (Full()) last_full_ = record.end_s;
      if (message->data.result != CURLE_OK) {
        record.error = TransferError(message->data.result, options_.http.url);
      } else if (code != 200) {
        record.error = fmt::format("HTTP {}: {}", code, ErrorText(stream->error_body));
      } else if (record.error.empty() && record.output_tokens == 0) {
        record.error = "the stream ended without a token";
      }
      records_[stream->index] = std::move(record);
      ++done_;
      Close(*stream);
      std::erase_if(open_, [stream](const auto& held) { return held.get() == stream; });
    }
    return done_ != before;
  }

  void Close(Stream& stream) {
    curl_multi_remove_handle(multi_, stream.curl);
    curl_easy_cleanup(stream.curl);
  }

  const LoadOptions& options_;
  const HttpTarget target_;
  const std::vector<nlohmann::json>& prompts_;
  CURLM* multi_;
  curl_slist* headers_ = nullptr;
  std::mt19937_64 random_;
  double next_arrival_ = 0;  // with a rate: of the request that is sent next
  double last_full_ = -1;    // when it last was that no further stream could be opened
  std::vector<std::unique_ptr<Stream>> open_;
  std::vector<RequestRecord> records_;
  int started_ = 0, done_ = 0;
  int64_t output_tokens_ = 0;
  const Clock::time_point began_ = Clock::now();
};

}  // namespace

absl::StatusOr<std::vector<RequestRecord>> RunLoad(
    const LoadOptions& options, const std::vector<nlohmann::json>& prompts,
    const std::function<void(const LoadProgress&)>& progress) {
  if (options.requests < 1) return UsageError("--requests is {}; at least 1", options.requests);
  if (options.concurrency < 0 || options.concurrency > kConcurrencyMax) {
    return UsageError("--concurrency is {}; 1 to {}", options.concurrency, kConcurrencyMax);
  }
  if (options.max_tokens < 1)
    return UsageError("--max-tokens is {}; at least 1", options.max_tokens);
  if (!(options.rate >= 0) || !std::isfinite(options.rate)) {
    return UsageError("--rate is {}; requests a second, or 0 for a closed loop", options.rate);
  }
  if (prompts.empty()) return InvalidArgument("no prompts");
  return Load(options, prompts).Run(progress);
}

}  // namespace switchyard::cli
