// Split patterns of tokenizer.json. They are written for Oniguruma (Ruby syntax, Unicode); PCRE2
// runs them after the places where the two differ are rewritten: \s, \d, \w, \v, \uHHHH, and ^ $ at
// every line. Constructs that mean something else in PCRE2 are refused by name (set operations and
// nested sets, \h, \R, \X, other inline flags than i, possessive intervals). Immutable and
// thread-safe; a RegexScratch belongs to one thread at a time.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

struct pcre2_real_code_8;
struct pcre2_real_match_data_8;
struct pcre2_real_match_context_8;
struct pcre2_real_jit_stack_8;

namespace switchyard {

// Match state that is reused from call to call.
class RegexScratch {
 public:
  RegexScratch();
  ~RegexScratch();
  RegexScratch(const RegexScratch&) = delete;
  RegexScratch& operator=(const RegexScratch&) = delete;

 private:
  friend class Regex;
  pcre2_real_match_context_8* context_;
  pcre2_real_jit_stack_8* stack_;
  pcre2_real_match_data_8* data_;
};

struct RegexMatch {
  size_t begin = 0;
  size_t end = 0;
  bool found = false;
};

class Regex {
 public:
  // An Oniguruma pattern. INVALID_ARGUMENT that quotes it.
  static absl::StatusOr<Regex> Compile(std::string_view pattern);
  // A pattern that matches this text and nothing else.
  static absl::StatusOr<Regex> Literal(std::string_view text);

  // The first match at or after `from`; the text is valid UTF-8. INVALID_ARGUMENT when the match
  // runs into its limits of steps or memory.
  absl::StatusOr<RegexMatch> Find(std::string_view text, size_t from, RegexScratch* scratch) const;

 private:
  struct Free {
    void operator()(pcre2_real_code_8* code) const;
  };
  static absl::StatusOr<Regex> CompileTranslated(std::string_view shown,
                                                 const std::string& pattern);

  std::unique_ptr<pcre2_real_code_8, Free> code_;
  std::string shown_;
  bool jit_ = false;
};

// The same pattern in PCRE2's syntax.
absl::StatusOr<std::string> TranslateOniguruma(std::string_view pattern);

}  // namespace switchyard
