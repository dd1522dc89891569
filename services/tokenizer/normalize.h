// The normalizer of tokenizer.json: steps that rewrite a text before it is cut. Immutable and
// thread-safe.
#pragma once

#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"
#include "services/tokenizer/regex.h"

namespace switchyard {

enum class UnicodeForm { kNfc, kNfd, kNfkc, kNfkd };

struct UnicodeStep {
  UnicodeForm form;
};
// Puts a text in front of one that is not empty.
struct PrependStep {
  std::string text;
};
struct ReplaceStep {
  Regex pattern;
  std::string content;
};

using NormalizeStep = std::variant<UnicodeStep, PrependStep, ReplaceStep>;

class Normalizer {
 public:
  Normalizer() = default;
  explicit Normalizer(std::vector<NormalizeStep> steps) : steps_(std::move(steps)) {}

  bool empty() const { return steps_.empty(); }

  // The text is valid UTF-8, and so is the result.
  absl::StatusOr<std::string> Normalize(std::string_view text, RegexScratch* scratch) const;

 private:
  std::vector<NormalizeStep> steps_;
};

}  // namespace switchyard
