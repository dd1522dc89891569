#define PCRE2_CODE_UNIT_WIDTH 8
#include "services/tokenizer/regex.h"

#include <pcre2.h>

#include <utility>

#include "services/base/status.h"

namespace switchyard {
namespace {

constexpr uint32_t kMatchLimit = 10'000'000;  // backtracking steps of one match
constexpr uint32_t kHeapLimitKib = 64 * 1024;
constexpr size_t kJitStackBytesMin = 32 * 1024;
constexpr size_t kJitStackBytesMax = 4 * 1024 * 1024;

}  // namespace

RegexScratch::RegexScratch()
    : context_(pcre2_match_context_create(nullptr)),
      stack_(pcre2_jit_stack_create(kJitStackBytesMin, kJitStackBytesMax, nullptr)),
      data_(pcre2_match_data_create(1, nullptr)) {
  pcre2_set_match_limit(context_, kMatchLimit);
  pcre2_set_heap_limit(context_, kHeapLimitKib);
  pcre2_jit_stack_assign(context_, nullptr, stack_);
}

RegexScratch::~RegexScratch() {
  pcre2_match_data_free(data_);
  pcre2_jit_stack_free(stack_);
  pcre2_match_context_free(context_);
}

void Regex::Free::operator()(pcre2_real_code_8* code) const { pcre2_code_free(code); }

absl::StatusOr<Regex> Regex::CompileTranslated(std::string_view shown, const std::string& pattern) {
  std::unique_ptr<pcre2_compile_context, decltype(&pcre2_compile_context_free)> context(
      pcre2_compile_context_create(nullptr), &pcre2_compile_context_free);
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
  int error = 0;
  size_t offset = 0;
  Regex regex;
  regex.shown_ = std::string(shown);
  regex.code_.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                                  PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C,
                                  &error, &offset, context.get()));
  if (regex.code_ == nullptr) {
    char message[160];
    pcre2_get_error_message(error, reinterpret_cast<PCRE2_UCHAR*>(message), sizeof(message));
    return InvalidArgument("pattern \"{}\": {}", shown, static_cast<const char*>(message));
  }
  regex.jit_ = pcre2_jit_compile(regex.code_.get(), PCRE2_JIT_COMPLETE) == 0;
  return regex;
}

absl::StatusOr<Regex> Regex::Compile(std::string_view pattern) {
  SY_ASSIGN_OR_RETURN(const std::string translated, TranslateOniguruma(pattern));
  return CompileTranslated(pattern, translated);
}

absl::StatusOr<Regex> Regex::Literal(std::string_view text) {
  std::string pattern;
  for (char c : text) {
    // Bytes of longer characters stand for themselves; everything else of ASCII may be escaped
    // unless it is a letter, a digit or a control character.
    const bool escape =
        static_cast<unsigned char>(c) >= ' ' && static_cast<unsigned char>(c) < 0x7F &&
        !((c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z'));
    if (escape) pattern.push_back('\\');
    pattern.push_back(c);
  }
  return CompileTranslated(text, pattern);
}

absl::StatusOr<RegexMatch> Regex::Find(std::string_view text, size_t from,
                                       RegexScratch* scratch) const {
  const auto* subject = reinterpret_cast<PCRE2_SPTR>(text.data());
  const int found = jit_ ? pcre2_jit_match(code_.get(), subject, text.size(), from,
                                           PCRE2_NO_UTF_CHECK, scratch->data_, scratch->context_)
                         : pcre2_match(code_.get(), subject, text.size(), from, PCRE2_NO_UTF_CHECK,
                                       scratch->data_, scratch->context_);
  if (found == PCRE2_ERROR_NOMATCH) return RegexMatch{};
  if (found < 0) {
    char message[160];
    pcre2_get_error_message(found, reinterpret_cast<PCRE2_UCHAR*>(message), sizeof(message));
    return InvalidArgument("text of {} bytes: the tokenizer's pattern \"{}\" fails on it: {}",
                           text.size(), shown_, static_cast<const char*>(message));
  }
  // 0 says that there were more groups than the scratch keeps, which is only the whole match.
  const size_t* range = pcre2_get_ovector_pointer(scratch->data_);
  // \K in a lookahead could put the begin behind the end.
  if (range[0] > range[1] || range[0] < from) {
    return InvalidArgument("the tokenizer's pattern \"{}\" moves the start of a match", shown_);
  }
  return RegexMatch{range[0], range[1], true};
}

}  // namespace switchyard
