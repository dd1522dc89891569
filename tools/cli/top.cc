#include "tools/cli/top.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <iostream>
#include <memory>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "services/base/status.h"
#include "services/config/units.h"
#include "tools/cli/terminal.h"
#include "tools/cli/top_state.h"
#include "tools/cli/top_view.h"

namespace switchyard::cli {
namespace {

constexpr int kAnswerSeconds = 10;

double SteadySeconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// What /ready says is missing; empty: nothing.
absl::StatusOr<std::string> Missing(HttpClient& http, const StopCallback& stop) {
  const auto ready = http.Get("/ready", stop);
  if (ready.ok()) return std::string();
  if (!absl::IsFailedPrecondition(ready.status())) return ready.status();
  const std::string text(ready.status().message());
  constexpr std::string_view kField = "\"missing\":\"";
  const size_t at = text.find(kField);
  return std::string(at == std::string::npos ? text : text.substr(at + kField.size()));
}

absl::StatusOr<TopSample> Look(HttpClient& http, const StopCallback& stop) {
  TopSample sample;
  SY_ASSIGN_OR_RETURN(const std::string experts, http.Get("/admin/experts", stop));
  sample.at = SteadySeconds();
  sample.experts = nlohmann::json::parse(experts, nullptr, /*allow_exceptions=*/false);
  if (!sample.experts.is_object()) return Internal("/admin/experts: the answer is no JSON object");
  SY_ASSIGN_OR_RETURN(const std::string metrics, http.Get("/metrics", stop));
  sample.metrics = ParseMetrics(metrics);
  SY_ASSIGN_OR_RETURN(sample.missing, Missing(http, stop));
  SY_ASSIGN_OR_RETURN(const std::string models, http.Get("/v1/models", stop));
  if (auto model = ServedModel(models); model.ok()) sample.model = *std::move(model);
  return sample;
}

// The last two answers, and why there is none since.
struct Answers {
  TopSample before, now;
  std::string lost;
  absl::Status refused;  // asking again is in vain
};

TopState StateOf(const Answers& answers, const TopCommand& command, double window) {
  TopState state = MakeTopState(answers.before, answers.now, window);
  state.url = command.http.url;
  state.lost = answers.lost;
  return state;
}

// Asks in a thread of its own, so that keys are heard while an answer is waited for.
class Asker {
 public:
  Asker(const HttpOptions& http, absl::Duration interval, Terminal& terminal)
      : http_(http), interval_(interval), terminal_(terminal), thread_([this] { Run(); }) {}
  ~Asker() {
    {
      absl::MutexLock lock(&mutex_);
      stopping_ = true;
    }
    thread_.join();
  }

  // None since the last time.
  std::optional<Answers> Take() {
    absl::MutexLock lock(&mutex_);
    if (!std::exchange(news_, false)) return std::nullopt;
    return answers_;
  }

 private:
  void Run() {
    const StopCallback stop = [this] {
      absl::MutexLock lock(&mutex_);
      return stopping_;
    };
    bool any = false;
    while (!stop()) {
      auto sample = Look(http_, stop);
      {
        absl::MutexLock lock(&mutex_);
        if (sample.ok()) {
          answers_.before = any ? std::move(answers_.now) : *sample;
          answers_.now = *std::move(sample);
          answers_.lost.clear();
          any = true;
        } else {
          answers_.lost = std::string(sample.status().message());
          if (absl::IsFailedPrecondition(sample.status())) answers_.refused = sample.status();
        }
        news_ = true;
      }
      terminal_.Wake();
      absl::MutexLock lock(&mutex_);
      mutex_.AwaitWithTimeout(absl::Condition(&stopping_), interval_);
    }
  }

  HttpClient http_;
  const absl::Duration interval_;
  Terminal& terminal_;
  absl::Mutex mutex_;
  Answers answers_ ABSL_GUARDED_BY(mutex_);
  bool news_ ABSL_GUARDED_BY(mutex_) = false;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

std::vector<std::string> LinesOf(const TopState& state, const TopCommand& command,
                                 const TopScreen& screen) {
  if (command.json)
    return {ToJson(state).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace)};
  return RenderTop(state, screen);
}

int WidthOfPrint() {
  int width = 0;
  const char* columns = std::getenv("COLUMNS");  // as a shell says it to programs without a screen
  if (columns != nullptr) width = std::atoi(columns);
  return width >= 20 && width <= 1000 ? width : 160;
}

absl::Status PrintOnce(const TopCommand& command, absl::Duration interval, double window) {
  HttpClient http(command.http);
  Answers answers;
  SY_ASSIGN_OR_RETURN(answers.before, Look(http, nullptr));
  std::this_thread::sleep_for(absl::ToChronoNanoseconds(interval));
  SY_ASSIGN_OR_RETURN(answers.now, Look(http, nullptr));
  const TopScreen screen{.width = WidthOfPrint()};
  for (const std::string& line : LinesOf(StateOf(answers, command, window), command, screen)) {
    std::cout << line << "\n";
  }
  std::cout.flush();
  return absl::OkStatus();
}

absl::Status Follow(const TopCommand& command, absl::Duration interval, double window) {
  SY_ASSIGN_OR_RETURN(const auto terminal, Terminal::Open(/*screen=*/!command.json));
  Asker asker(command.http, interval, *terminal);
  Answers answers;
  answers.lost = "the first is waited for";
  const auto show = [&] {
    TopScreen screen{.width = WidthOfPrint()};
    if (terminal->is_screen()) {
      const Terminal::Size size = terminal->size();
      screen = {.width = size.width,
                .height = size.height,
                .color = command.color,
                .keys = terminal->has_keys()};
    }
    terminal->Show(LinesOf(StateOf(answers, command, window), command, screen));
  };
  if (terminal->is_screen()) show();
  while (true) {
    char key = 0;
    const Terminal::Event event = terminal->Wait(absl::Seconds(1), &key);
    if (event == Terminal::Event::kEnd) return absl::OkStatus();
    bool changed = event == Terminal::Event::kResized;
    if (event == Terminal::Event::kKey) {
      if (key == 'q' || key == 'Q') return absl::OkStatus();
      if (key == 'w') {
        const auto* at = std::ranges::find(kTopWindows, window);
        window = at + 1 == std::end(kTopWindows) ? kTopWindows[0] : at[1];
        changed = true;
      }
    }
    if (auto news = asker.Take(); news.has_value()) {
      if (!news->refused.ok()) return news->refused;
      answers = *std::move(news);
      changed = true;
    }
    if (changed) show();
  }
}

}  // namespace

absl::Status RunTop(TopCommand command) {
  const auto interval = config::ParseDuration(command.interval);
  if (!interval.ok() || *interval < absl::Milliseconds(100) || *interval > absl::Hours(1)) {
    return UsageError("--interval: \"{}\"; expected 100ms to 1h", command.interval);
  }
  const auto window = config::ParseDuration(command.window);
  const double seconds = window.ok() ? absl::ToDoubleSeconds(*window) : 0;
  if (std::ranges::count(kTopWindows, seconds) == 0) {
    return UsageError("--window: \"{}\"; expected 1s, 10s or 60s", command.window);
  }
  SY_RETURN_IF_ERROR(ReadApiKey(command.http));
  command.http.timeout_s = kAnswerSeconds;
  return command.once ? PrintOnce(command, *interval, seconds)
                      : Follow(command, *interval, seconds);
}

}  // namespace switchyard::cli
