#include "tools/cli/chat.h"

#include <histedit.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <nlohmann/json.hpp>

#include "absl/strings/numbers.h"
#include "services/base/file.h"
#include "services/base/status.h"
#include "tools/cli/sse_parser.h"

namespace switchyard::cli {
namespace {

std::atomic<bool> interrupted{false};
void OnInterrupt(int) { interrupted.store(true); }

constexpr std::string_view kHelp =
    "/help            this\n"
    "/new             forget the conversation\n"
    "/undo            forget the last question and answer\n"
    "/again           ask the last question again\n"
    "/system TEXT     set the system message (empty: none)\n"
    "/temperature X   0 is greedy\n"
    "/max N           most tokens of an answer (0: the server's default)\n"
    "/reasoning       show or hide the reasoning\n"
    "/save FILE       write the conversation as JSON\n"
    "/quit            end (also Ctrl-D)\n";

// Prints an answer as it streams, the reasoning dimmed where the output is a terminal.
class AnswerPrinter {
 public:
  explicit AnswerPrinter(bool show_reasoning)
      : show_reasoning_(show_reasoning), colour_(isatty(STDOUT_FILENO) != 0) {}

  void Reasoning(std::string_view text) {
    if (!show_reasoning_ || text.empty()) return;
    if (!in_reasoning_) std::cout << (colour_ ? "\x1b[2m" : "[reasoning] ");
    in_reasoning_ = true;
    std::cout << text << std::flush;
  }
  void Content(std::string_view text) {
    if (in_reasoning_) EndReasoning();
    // The blank lines between reasoning and answer are layout, which is ours here.
    while (at_start_ && !text.empty() && text.front() == '\n') text.remove_prefix(1);
    if (text.empty()) return;
    at_start_ = false;
    std::cout << text << std::flush;
  }
  void End() {
    if (in_reasoning_) EndReasoning();
    std::cout << "\n";
  }

 private:
  void EndReasoning() {
    in_reasoning_ = false;
    std::cout << (colour_ ? "\x1b[0m\n" : "\n[answer] ");
  }
  const bool show_reasoning_, colour_;
  bool in_reasoning_ = false, at_start_ = true;
};

// What came of a question.
struct Answer {
  std::string text;
  std::string error;
  bool cut_off = false;  // by a limit of tokens
  int64_t tokens = -1;   // -1: the server does not say
};

// Not on standard output: it is no part of the answer. `max_tokens` is what the user set, 0
// nothing.
void SayCutOff(const Answer& answer, int max_tokens, std::string_view knob) {
  const std::string after = answer.tokens < 0 ? "" : fmt::format(" after {} tokens", answer.tokens);
  const bool wanted = max_tokens > 0 && (answer.tokens < 0 || answer.tokens >= max_tokens);
  const bool colour = isatty(STDERR_FILENO) != 0;
  std::cerr << fmt::format("{}(cut off{}; {}){}\n", colour ? "\x1b[2m" : "", after,
                           wanted ? knob : "the server's limit", colour ? "\x1b[0m" : "");
}

class Chat {
 public:
  explicit Chat(ChatOptions options)
      : options_(std::move(options)), http_(options_.http), messages_(nlohmann::json::array()) {}

  absl::Status Connect() {
    SY_ASSIGN_OR_RETURN(const std::string body, http_.Get("/v1/models"));
    if (!options_.model.empty()) return absl::OkStatus();
    SY_ASSIGN_OR_RETURN(options_.model, ServedModel(body));
    return absl::OkStatus();
  }

  const std::string& model() const { return options_.model; }

  // Asks and prints; the exchange is kept if an answer came. CANCELLED: Ctrl-C ended it.
  absl::Status Ask(const std::string& question) {
    messages_.push_back({{"role", "user"}, {"content", question}});
    AnswerPrinter printer(options_.show_reasoning);
    Answer answer;
    SseParser sse;
    interrupted.store(false);
    absl::Status status = http_.Post(
        "/v1/chat/completions", Body().dump(),
        [&](std::string_view bytes) {
          return sse.Feed(bytes, [&](std::string_view event) {
            OnEvent(event, printer, answer);
            return !interrupted.load();
          });
        },
        [] { return interrupted.load(); });
    printer.End();
    if (status.ok() && !answer.error.empty()) status = Internal("{}", answer.error);
    if (status.ok() || (absl::IsCancelled(status) && !answer.text.empty())) {
      messages_.push_back({{"role", "assistant"}, {"content", answer.text}});
    } else {
      messages_.erase(messages_.size() - 1);
    }
    if (status.ok() && answer.cut_off) {
      SayCutOff(answer, options_.max_tokens, options_.once.has_value() ? "--max-tokens" : "/max");
    }
    return status;
  }

  // False: the user wants to end.
  absl::StatusOr<bool> Command(const std::string& line) {
    const size_t space = line.find(' ');
    const std::string name = line.substr(0, space);
    const std::string rest = space == std::string::npos ? "" : line.substr(space + 1);
    if (name == "/quit" || name == "/exit") return false;
    if (name == "/help") {
      std::cout << kHelp;
    } else if (name == "/new") {
      messages_ = nlohmann::json::array();
    } else if (name == "/undo") {
      Undo();
    } else if (name == "/again") {
      const std::string question = Undo();
      if (!question.empty()) SY_RETURN_IF_ERROR(Ask(question));
    } else if (name == "/system") {
      options_.system = rest;
    } else if (name == "/temperature") {
      double value = 0;
      if (absl::SimpleAtod(rest, &value) && value >= 0 && value <= 2) {
        options_.temperature = value;
      } else {
        std::cout << "/temperature " << rest << ": expected a number from 0 to 2\n";
      }
    } else if (name == "/max") {
      int value = 0;
      if (absl::SimpleAtoi(rest, &value) && value >= 0) {
        options_.max_tokens = value;
      } else {
        std::cout << "/max " << rest << ": expected a whole number, 0 or more\n";
      }
    } else if (name == "/reasoning") {
      options_.show_reasoning = !options_.show_reasoning;
      std::cout << (options_.show_reasoning ? "reasoning is shown\n" : "reasoning is hidden\n");
    } else if (name == "/save") {
      SY_RETURN_IF_ERROR(WriteFile(rest, messages_.dump(2) + "\n"));
      std::cout << "saved\n";
    } else {
      std::cout << "unknown command " << name << "; /help lists them\n";
    }
    return true;
  }

 private:
  nlohmann::json Body() const {
    nlohmann::json messages = nlohmann::json::array();
    if (!options_.system.empty()) {
      messages.push_back({{"role", "system"}, {"content", options_.system}});
    }
    for (const auto& message : messages_) messages.push_back(message);
    nlohmann::json body = {{"model", options_.model},
                           {"messages", messages},
                           {"stream", true},
                           {"stream_options", {{"include_usage", true}}}};
    if (options_.temperature >= 0) body["temperature"] = options_.temperature;
    if (options_.max_tokens > 0) body["max_completion_tokens"] = options_.max_tokens;
    return body;
  }

  static void OnEvent(std::string_view event, AnswerPrinter& printer, Answer& answer) {
    if (event == "[DONE]") return;
    const auto json = nlohmann::json::parse(event, nullptr, /*allow_exceptions=*/false);
    if (!json.is_object()) return;
    if (json.contains("error")) answer.error = ErrorText(event);
    if (const auto usage = json.find("usage"); usage != json.end() && usage->is_object()) {
      const auto tokens = usage->find("completion_tokens");
      if (tokens != usage->end() && tokens->is_number_integer()) answer.tokens = *tokens;
    }
    if (!json.contains("choices") || !json["choices"].is_array()) return;
    for (const auto& choice : json["choices"]) {
      if (!choice.is_object()) continue;
      const auto finish = choice.find("finish_reason");
      if (finish != choice.end() && *finish == "length") answer.cut_off = true;
      if (!choice.contains("delta") || !choice["delta"].is_object()) continue;
      const auto& delta = choice["delta"];
      if (delta.contains("reasoning_content") && delta["reasoning_content"].is_string()) {
        printer.Reasoning(delta["reasoning_content"].get<std::string>());
      }
      if (delta.contains("content") && delta["content"].is_string()) {
        const auto text = delta["content"].get<std::string>();
        answer.text += text;
        printer.Content(text);
      }
    }
  }

  // Forgets the last exchange; returns its question.
  std::string Undo() {
    while (!messages_.empty()) {
      const nlohmann::json last = messages_.back();
      messages_.erase(messages_.size() - 1);
      if (last["role"] == "user") return last["content"].get<std::string>();
    }
    return "";
  }

  ChatOptions options_;
  HttpClient http_;
  nlohmann::json messages_;
};

std::string HistoryFile() {
  const char* state = std::getenv("XDG_STATE_HOME");
  const char* home = std::getenv("HOME");
  std::filesystem::path folder;
  if (state != nullptr && *state != '\0') {
    folder = state;
  } else if (home != nullptr) {
    folder = std::filesystem::path(home) / ".local/state";
  } else {
    return "";
  }
  folder /= "switchyard";
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  return error ? "" : (folder / "chat_history").string();
}

char* Prompt(EditLine*) {
  static char prompt[] = "> ";
  return prompt;
}

// Reads lines with editing and history from a terminal, plainly from a pipe.
class LineReader {
 public:
  LineReader() {
    if (isatty(STDIN_FILENO) == 0) return;
    edit_ = el_init("switchyard", stdin, stdout, stderr);
    history_ = history_init();
    HistEvent event;
    history(history_, &event, H_SETSIZE, 1000);
    el_set(edit_, EL_PROMPT, &Prompt);
    el_set(edit_, EL_EDITOR, "emacs");
    el_set(edit_, EL_SIGNAL, 1);
    el_set(edit_, EL_HIST, history, history_);
    file_ = HistoryFile();
    if (!file_.empty()) history(history_, &event, H_LOAD, file_.c_str());
  }
  ~LineReader() {
    if (edit_ == nullptr) return;
    HistEvent event;
    if (!file_.empty()) history(history_, &event, H_SAVE, file_.c_str());
    history_end(history_);
    el_end(edit_);
  }

  bool Next(std::string& line) {
    if (edit_ == nullptr) return static_cast<bool>(std::getline(std::cin, line));
    int count = 0;
    const char* text = el_gets(edit_, &count);
    if (text == nullptr || count <= 0) return false;
    line.assign(text, count);
    while (!line.empty() && (line.back() == '\n' || line.back() == '\r')) line.pop_back();
    HistEvent event;
    if (!line.empty()) history(history_, &event, H_ENTER, line.c_str());
    return true;
  }

 private:
  EditLine* edit_ = nullptr;
  History* history_ = nullptr;
  std::string file_;
};

// In a terminal an error is told and the user goes on; a script cannot, and ends with it.
absl::Status Converse(Chat& chat) {
  const bool terminal = isatty(STDIN_FILENO) != 0;
  std::cout << "talking to " << chat.model() << "; /help lists the commands, Ctrl-D ends\n";
  LineReader reader;
  for (std::string line; reader.Next(line);) {
    if (line.empty()) continue;
    absl::StatusOr<bool> more = true;
    if (line.front() == '/') {
      more = chat.Command(line);
    } else if (const absl::Status asked = chat.Ask(line); !asked.ok()) {
      more = asked;
    }
    if (more.ok() && !*more) break;
    if (more.ok()) continue;
    if (!terminal) return more.status();
    if (absl::IsCancelled(more.status())) continue;
    std::cout << "error: " << ToStd(more.status().message()) << "\n";
  }
  // Between answers Ctrl-C ends the wait for a script's next line.
  return !terminal && interrupted.load() ? Cancelled("interrupted") : absl::OkStatus();
}

}  // namespace

absl::Status RunChat(ChatOptions options) {
  const std::optional<std::string> once = options.once;
  if (once.has_value() && once->empty()) {
    return UsageError("--once is empty; give a question, or leave it out for a conversation");
  }
  SY_RETURN_IF_ERROR(ReadApiKey(options.http));
  Chat chat(std::move(options));
  SY_RETURN_IF_ERROR(chat.Connect());
  struct sigaction action = {};
  action.sa_handler = &OnInterrupt;
  sigaction(SIGINT, &action, nullptr);
  return once.has_value() ? chat.Ask(*once) : Converse(chat);
}

}  // namespace switchyard::cli
