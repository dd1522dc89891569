#include "gateway/text/reasoning_split.h"

#include <utility>

namespace switchyard::gateway {

std::optional<ReasoningTokens> FindReasoningTokens(const Tokenizer& tokenizer) {
  const auto open = tokenizer.IdOf("<think>");
  const auto close = tokenizer.IdOf("</think>");
  if (!open || !close || !tokenizer.IsAdded(*open) || !tokenizer.IsAdded(*close)) {
    return std::nullopt;
  }
  return ReasoningTokens{*open, *close};
}

bool EndsInsideReasoning(const Tokenizer& tokenizer, const ReasoningTokens& tokens,
                         std::span<const int32_t> prompt) {
  for (size_t i = prompt.size(); i > 0; --i) {
    if (prompt[i - 1] == tokens.open) return true;
    if (tokenizer.IsAdded(prompt[i - 1])) return false;  // </think>, or a turn that came after
  }
  return false;
}

ReasoningSplitter::ReasoningSplitter(const Tokenizer& tokenizer,
                                     std::optional<ReasoningTokens> tokens, bool starts_inside,
                                     bool skip_special)
    : tokens_(tokens),
      part_(tokens && starts_inside ? Part::kReasoning : Part::kContent),
      decoder_(tokenizer, skip_special),
      skip_breaks_(part_ == Part::kReasoning) {}

ReasoningDelta ReasoningSplitter::Push(int32_t id) {
  const bool opens = tokens_ && id == tokens_->open && part_ == Part::kContent;
  const bool closes = tokens_ && id == tokens_->close && part_ == Part::kReasoning;
  if (!opens && !closes) {
    ReasoningDelta delta;
    (part_ == Part::kReasoning ? delta.reasoning : delta.content) = Shown(decoder_.Push(id));
    return delta;
  }
  ReasoningDelta delta = Flush();
  part_ = opens ? Part::kReasoning : Part::kContent;
  skip_breaks_ = true;
  return delta;
}

ReasoningDelta ReasoningSplitter::Flush() {
  ReasoningDelta delta;
  (part_ == Part::kReasoning ? delta.reasoning : delta.content) = Shown(decoder_.Flush());
  held_breaks_.clear();
  return delta;
}

// Without the line breaks at the start of a part that a marker opened, and with those at the end of
// the reasoning held back until something follows them.
std::string ReasoningSplitter::Shown(std::string text) {
  if (skip_breaks_) {
    const size_t first = text.find_first_not_of('\n');
    if (first == std::string::npos) return "";
    text.erase(0, first);
    skip_breaks_ = false;
  }
  if (part_ == Part::kContent) return text;
  text.insert(0, held_breaks_);
  const size_t last = text.find_last_not_of('\n');
  const size_t kept = last == std::string::npos ? 0 : last + 1;
  held_breaks_ = text.substr(kept);
  text.resize(kept);
  return text;
}

}  // namespace switchyard::gateway
