// `switchyard chat`: a conversation in the terminal with any server that speaks OpenAI's chat API.
// Streams; reasoning is dimmed; /commands steer; Ctrl-C ends an answer, Ctrl-D the program.
#pragma once

#include <optional>
#include <string>

#include "absl/status/status.h"
#include "tools/cli/http_client.h"

namespace switchyard::cli {

struct ChatOptions {
  HttpOptions http;
  std::string model;
  std::string system;
  std::optional<std::string> once;  // ask this, print the answer and end
  double temperature = -1;          // < 0: the model's default
  int max_tokens = 0;               // 0: the server's default
  bool show_reasoning = true;
};

// CANCELLED: Ctrl-C ended it. In a terminal it ends only the answer that comes.
absl::Status RunChat(ChatOptions options);

}  // namespace switchyard::cli
