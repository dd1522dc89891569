// The pre-tokenizer of tokenizer.json: steps that cut a text into pieces, each step working on the
// pieces of the one before, so that a pattern's lookahead sees the end of its piece. Steps are
// immutable and thread-safe; a PieceBuffer belongs to one thread at a time.
#pragma once

#include <deque>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "services/tokenizer/regex.h"

namespace switchyard {

// What becomes of the parts that a split pattern matches.
enum class SplitBehavior { kIsolated, kRemoved, kMergedWithPrevious, kMergedWithNext, kContiguous };

struct SplitStep {
  Regex pattern;
  SplitBehavior behavior = SplitBehavior::kIsolated;
  bool invert = false;  // the parts between the matches play the matches' role
};

// Puts a space in front of every piece that does not begin with one.
struct PrefixSpaceStep {};

// Spells spaces with a visible character and cuts in front of each.
struct MetaspaceStep {
  enum class Prepend { kAlways, kFirst, kNever };
  std::string replacement;
  Prepend prepend = Prepend::kAlways;
  bool split = true;
  Regex pattern;  // the replacement
};

using PreTokenizeStep = std::variant<SplitStep, PrefixSpaceStep, MetaspaceStep>;

struct PieceBuffer {
  std::vector<std::string_view> pieces;  // the result, never empty pieces
  std::vector<std::string_view> next;
  std::deque<std::string> owned;  // what pieces of rewritten text point into
  RegexScratch regex;
};

// Cuts the text into buffer->pieces, which point into the text and into the buffer. at_start: the
// text is the beginning of the whole input.
absl::Status PreTokenize(std::span<const PreTokenizeStep> steps, std::string_view text,
                         bool at_start, PieceBuffer* buffer);

}  // namespace switchyard
