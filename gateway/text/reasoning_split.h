// Splits generated tokens into reasoning and content by the token ids of <think> and </think>,
// never by text: a user who quotes the words changes nothing. Knows whether the prompt already ends
// inside the thinking (templates whose generation prompt opens it). One stream, one thread.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "services/tokenizer/stream_decoder.h"
#include "services/tokenizer/tokenizer.h"

namespace switchyard::gateway {

struct ReasoningTokens {
  int32_t open = -1;
  int32_t close = -1;
};

// The ids of <think> and </think> where both are added tokens of this vocabulary, else nothing.
std::optional<ReasoningTokens> FindReasoningTokens(const Tokenizer& tokenizer);

// Whether what follows the prompt is reasoning: its last marker opens and no other added token (the
// next turn of the conversation) comes after it.
bool EndsInsideReasoning(const Tokenizer& tokenizer, const ReasoningTokens& tokens,
                         std::span<const int32_t> prompt);

// Text that became visible; either part may be empty.
struct ReasoningDelta {
  std::string reasoning;
  std::string content;
};

class ReasoningSplitter {
 public:
  enum class Part { kReasoning, kContent };

  // Without tokens everything is content. The tokenizer outlives the splitter. Line breaks around
  // the markers are layout, not text, and are left out.
  ReasoningSplitter(const Tokenizer& tokenizer, std::optional<ReasoningTokens> tokens,
                    bool starts_inside, bool skip_special);

  ReasoningDelta Push(int32_t id);
  ReasoningDelta Flush();

  // The part that the next token belongs to unless it is a marker.
  Part part() const { return part_; }

 private:
  std::string Shown(std::string text);

  std::optional<ReasoningTokens> tokens_;
  Part part_;
  StreamDecoder decoder_;
  bool skip_breaks_;         // at the start of a part that a marker opened
  std::string held_breaks_;  // line breaks at the end of the reasoning so far
};

}  // namespace switchyard::gateway
