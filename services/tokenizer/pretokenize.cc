#include "services/tokenizer/pretokenize.h"

#include <algorithm>
#include <utility>

#include "services/base/status.h"
#include "services/base/utf8.h"

namespace switchyard {
namespace {

struct Part {
  std::string_view text;
  bool match;
};

// Calls part(text, is_match) for the matches and what lies between them, in order.
template <typename F>
absl::Status ForEachPart(const Regex& pattern, std::string_view text, RegexScratch* scratch,
                         F part) {
  size_t done = 0;
  for (size_t from = 0; from < text.size();) {
    SY_ASSIGN_OR_RETURN(const RegexMatch match, pattern.Find(text, from, scratch));
    if (!match.found) break;
    if (match.begin > done) part(text.substr(done, match.begin - done), false);
    if (match.end > match.begin) {
      part(text.substr(match.begin, match.end - match.begin), true);
      from = match.end;
    } else if (match.begin < text.size()) {
      from = match.begin + FirstUtf8(text.substr(match.begin)).size;
    } else {
      from = text.size();
    }
    done = match.end;
  }
  if (done < text.size()) part(text.substr(done), false);
  return absl::OkStatus();
}

std::string_view Joined(std::string_view a, std::string_view b) {
  return {a.data(), a.size() + b.size()};
}

// Glues each match to the part before it (or, walking backwards, behind it).
void MergeMatches(std::vector<Part>& parts, bool with_previous,
                  std::vector<std::string_view>* out) {
  if (!with_previous) std::reverse(parts.begin(), parts.end());
  const size_t first = out->size();
  bool previous_match = false;
  for (const Part& part : parts) {
    if (part.match && !previous_match && out->size() > first) {
      out->back() = with_previous ? Joined(out->back(), part.text) : Joined(part.text, out->back());
    } else {
      out->push_back(part.text);
    }
    previous_match = part.match;
  }
  if (!with_previous) std::reverse(out->begin() + first, out->end());
}

void MergeContiguous(const std::vector<Part>& parts, std::vector<std::string_view>* out) {
  const size_t first = out->size();
  bool previous_match = false;
  for (const Part& part : parts) {
    if (part.match == previous_match && out->size() > first) {
      out->back() = Joined(out->back(), part.text);
    } else {
      out->push_back(part.text);
    }
    previous_match = part.match;
  }
}

absl::Status Split(const Regex& pattern, SplitBehavior behavior, bool invert,
                   std::string_view piece, RegexScratch* scratch,
                   std::vector<std::string_view>* out) {
  if (behavior == SplitBehavior::kIsolated) {  // the common one needs no list of parts
    return ForEachPart(pattern, piece, scratch,
                       [&](std::string_view text, bool) { out->push_back(text); });
  }
  std::vector<Part> parts;
  SY_RETURN_IF_ERROR(ForEachPart(pattern, piece, scratch, [&](std::string_view text, bool match) {
    parts.push_back({text, match != invert});
  }));
  switch (behavior) {
    case SplitBehavior::kRemoved:
      for (const Part& part : parts) {
        if (!part.match) out->push_back(part.text);
      }
      break;
    case SplitBehavior::kMergedWithPrevious:
      MergeMatches(parts, true, out);
      break;
    case SplitBehavior::kMergedWithNext:
      MergeMatches(parts, false, out);
      break;
    default:
      MergeContiguous(parts, out);
  }
  return absl::OkStatus();
}

absl::Status Apply(const SplitStep& step, bool, PieceBuffer* buffer) {
  for (std::string_view piece : buffer->pieces) {
    SY_RETURN_IF_ERROR(
        Split(step.pattern, step.behavior, step.invert, piece, &buffer->regex, &buffer->next));
  }
  return absl::OkStatus();
}

absl::Status Apply(const PrefixSpaceStep&, bool, PieceBuffer* buffer) {
  for (std::string_view piece : buffer->pieces) {
    if (piece.front() != ' ') piece = buffer->owned.emplace_back(" ").append(piece);
    buffer->next.push_back(piece);
  }
  return absl::OkStatus();
}

absl::Status Apply(const MetaspaceStep& step, bool at_start, PieceBuffer* buffer) {
  for (std::string_view piece : buffer->pieces) {
    std::string text;
    for (char c : piece) {
      if (c == ' ') {
        text.append(step.replacement);
      } else {
        text.push_back(c);
      }
    }
    const bool wanted = step.prepend == MetaspaceStep::Prepend::kAlways ||
                        (step.prepend == MetaspaceStep::Prepend::kFirst && at_start);
    if (wanted && text.compare(0, step.replacement.size(), step.replacement) != 0) {
      text.insert(0, step.replacement);
    }
    at_start = false;
    const std::string& kept = buffer->owned.emplace_back(std::move(text));
    if (step.split) {
      SY_RETURN_IF_ERROR(Split(step.pattern, SplitBehavior::kMergedWithNext, false, kept,
                               &buffer->regex, &buffer->next));
    } else {
      buffer->next.push_back(kept);
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status PreTokenize(std::span<const PreTokenizeStep> steps, std::string_view text,
                         bool at_start, PieceBuffer* buffer) {
  buffer->pieces.clear();
  buffer->owned.clear();
  if (text.empty()) return absl::OkStatus();
  buffer->pieces.push_back(text);
  for (const PreTokenizeStep& step : steps) {
    buffer->next.clear();
    SY_RETURN_IF_ERROR(std::visit([&](const auto& s) { return Apply(s, at_start, buffer); }, step));
    std::swap(buffer->pieces, buffer->next);
  }
  return absl::OkStatus();
}

}  // namespace switchyard
