#include "gateway/prompt/jinja/lexer.h"

#include <algorithm>

#include "services/base/status.h"
#include "services/base/utf8.h"

namespace switchyard::gateway::jinja {
namespace {

bool IsSpaceAt(std::string_view text, size_t at, size_t* size) {
  const Utf8Char c = FirstUtf8(text.substr(at));
  *size = c.size;
  return IsUnicodeSpace(c.code) || (c.code >= 0x1C && c.code <= 0x1F);
}

bool IsNameStart(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' ||
         static_cast<unsigned char>(c) >= 0x80;
}
bool IsDigit(char c) { return c >= '0' && c <= '9'; }

// Line ends as the lexer sees them, without the last one.
std::string Normalized(std::string_view source) {
  std::string text;
  text.reserve(source.size());
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] == '\r') {
      text.push_back('\n');
      if (i + 1 < source.size() && source[i + 1] == '\n') ++i;
    } else {
      text.push_back(source[i]);
    }
  }
  if (!text.empty() && text.back() == '\n') text.pop_back();
  return text;
}

class Lexer {
 public:
  explicit Lexer(std::string source) : source_(std::move(source)) {}

  absl::StatusOr<std::vector<Token>> Run() {
    while (at_ < source_.size()) SY_RETURN_IF_ERROR(Root());
    tokens_.push_back({TokenKind::kEnd, "", line_});
    return std::move(tokens_);
  }

 private:
  absl::Status Fail(std::string_view what) const {
    return InvalidArgument("line {}: {}", line_, what);
  }

  bool Looking(std::string_view text) const {
    return std::string_view(source_).substr(at_, text.size()) == text;
  }

  // Moves on, counting lines.
  void Skip(size_t count) {
    line_ += std::count(source_.begin() + at_, source_.begin() + at_ + count, '\n');
    at_ += count;
  }

  void SkipSpaces() {
    size_t size;
    while (at_ < source_.size() && IsSpaceAt(source_, at_, &size)) Skip(size);
  }

  void EmitText(std::string_view text) {
    if (!text.empty()) tokens_.push_back({TokenKind::kText, std::string(text), line_});
  }

  // The text up to `end`, less what the tag that begins there strips. strip: '-', '+' or 0.
  std::string_view Stripped(std::string_view text, char strip, bool may_lstrip) const {
    size_t size;
    if (strip == '-') {
      size_t keep = 0;  // where the last run of spaces begins
      for (size_t i = 0; i < text.size(); i += size) {
        if (!IsSpaceAt(text, i, &size)) keep = i + size;
      }
      return text.substr(0, keep);
    }
    if (strip == '+' || !may_lstrip) return text;
    const size_t newline = text.rfind('\n');
    const size_t start = newline == std::string_view::npos ? 0 : newline + 1;
    if (start == 0 && !line_starting_) return text;
    for (size_t i = start; i < text.size(); i += size) {
      if (!IsSpaceAt(text, i, &size)) return text;
    }
    return text.substr(0, start);
  }

  // Text up to the next tag, and the beginning of that tag.
  absl::Status Root() {
    size_t tag = at_;
    while (true) {
      tag = source_.find('{', tag);
      if (tag == std::string::npos) {
        EmitText(std::string_view(source_).substr(at_));
        Skip(source_.size() - at_);
        return absl::OkStatus();
      }
      const char next = tag + 1 < source_.size() ? source_[tag + 1] : '\0';
      if (next == '%' || next == '{' || next == '#') break;
      ++tag;
    }
    const char kind = source_[tag + 1];
    const char sign = tag + 2 < source_.size() ? source_[tag + 2] : '\0';
    const char strip = sign == '-' || sign == '+' ? sign : '\0';
    EmitText(Stripped(std::string_view(source_).substr(at_, tag - at_), strip, kind != '{'));
    Skip(tag - at_ + (strip != '\0' ? 3 : 2));
    line_starting_ = false;
    if (kind == '#') return Comment();
    if (kind == '{') return Code(TokenKind::kOutputBegin, TokenKind::kOutputEnd);
    if (size_t body = RawBegin(); body != 0) return Raw(body);
    return Code(TokenKind::kBlockBegin, TokenKind::kBlockEnd);
  }

  absl::Status Comment() {
    const size_t end = source_.find("#}", at_);
    if (end == std::string::npos) return Fail("Missing end of comment tag");
    const char sign = end > at_ ? source_[end - 1] : '\0';
    Skip(end - at_);
    EndOfTag(sign == '-' || sign == '+' ? sign : '\0', /*trim=*/true);
    return absl::OkStatus();
  }

  // Behind a tag's end sign: the two closing characters and the white space that goes with them.
  void EndOfTag(char sign, bool trim) {
    Skip(2);
    if (sign == '-') {
      SkipSpaces();
    } else if (sign != '+' && trim && Looking("\n")) {
      Skip(1);
    }
    line_starting_ = at_ > 0 && source_[at_ - 1] == '\n';
  }

  // Where the text of a raw block begins, 0 if this is another block.
  size_t RawBegin() const {
    size_t at = source_.find_first_not_of(" \t\n", at_);
    if (at == std::string::npos || source_.compare(at, 3, "raw") != 0) return 0;
    at = source_.find_first_not_of(" \t\n", at + 3);
    if (at == std::string::npos) return 0;
    if (source_.compare(at, 2, "%}") == 0) return at + 2;
    if (source_.compare(at, 3, "-%}") != 0) return 0;
    size_t size;
    at += 3;
    while (at < source_.size() && IsSpaceAt(source_, at, &size)) at += size;
    return at;
  }

  absl::Status Raw(size_t body) {
    Skip(body - at_);
    line_starting_ = at_ > 0 && source_[at_ - 1] == '\n';
    for (size_t tag = source_.find("{%", at_); tag != std::string::npos;
         tag = source_.find("{%", tag + 2)) {
      size_t at = tag + 2;
      const char begin = at < source_.size() ? source_[at] : '\0';
      if (begin == '-' || begin == '+') ++at;
      at = source_.find_first_not_of(" \t\n", at);
      if (at == std::string::npos || source_.compare(at, 6, "endraw") != 0) continue;
      at = source_.find_first_not_of(" \t\n", at + 6);
      if (at == std::string::npos) continue;
      const char sign = source_[at] == '-' || source_[at] == '+' ? source_[at] : '\0';
      if (sign != '\0') ++at;
      if (source_.compare(at, 2, "%}") != 0) continue;
      EmitText(Stripped(std::string_view(source_).substr(at_, tag - at_), begin, true));
      Skip(at - at_);
      EndOfTag(sign, /*trim=*/true);
      return absl::OkStatus();
    }
    return Fail("Missing end of raw directive");
  }

  // The tokens of {{ … }} or {% … %}.
  absl::Status Code(TokenKind begin, TokenKind end) {
    const int opened = line_;
    tokens_.push_back({begin, "", line_});
    const std::string_view closing = end == TokenKind::kOutputEnd ? "}}" : "%}";
    std::string brackets;
    while (true) {
      SkipSpaces();
      if (at_ >= source_.size()) {
        return InvalidArgument("line {}: the tag has no end", opened);
      }
      if (brackets.empty()) {
        const bool sign = Looking("-") || (Looking("+") && end == TokenKind::kBlockEnd);
        if (std::string_view(source_).substr(at_ + (sign ? 1 : 0), 2) == closing) {
          const char strip = sign ? source_[at_] : '\0';
          if (sign) Skip(1);
          tokens_.push_back({end, "", line_});
          EndOfTag(strip, /*trim=*/end == TokenKind::kBlockEnd);
          return absl::OkStatus();
        }
      }
      SY_RETURN_IF_ERROR(CodeToken(&brackets));
    }
  }

  absl::Status CodeToken(std::string* brackets) {
    const char c = source_[at_];
    if (IsNameStart(c)) {
      size_t end = at_;
      while (end < source_.size() && (IsNameStart(source_[end]) || IsDigit(source_[end]))) ++end;
      Emit(TokenKind::kName, end - at_);
      return absl::OkStatus();
    }
    if (IsDigit(c)) return Number();
    if (c == '\'' || c == '"') return String(c);
    for (std::string_view op : {"//", "**", "==", "!=", "<=", ">="}) {
      if (Looking(op)) {
        Emit(TokenKind::kOperator, 2);
        return absl::OkStatus();
      }
    }
    if (std::string_view("+-*/%~<>=.,:|()[]{};").find(c) == std::string_view::npos) {
      return Fail(fmt::format("unexpected char '{}'", c));
    }
    if (c == '(' || c == '[' || c == '{')
      brackets->push_back(c == '(' ? ')' : c == '[' ? ']' : '}');
    if (c == ')' || c == ']' || c == '}') {
      if (brackets->empty() || brackets->back() != c)
        return Fail(fmt::format("unexpected '{}'", c));
      brackets->pop_back();
    }
    Emit(TokenKind::kOperator, 1);
    return absl::OkStatus();
  }

  void Emit(TokenKind kind, size_t size) {
    tokens_.push_back({kind, source_.substr(at_, size), line_});
    Skip(size);
  }

  absl::Status Number() {
    size_t end = at_;
    const auto digits = [&] {
      while (end < source_.size() && (IsDigit(source_[end]) || source_[end] == '_')) ++end;
    };
    const auto digit_at = [&](size_t i) { return i < source_.size() && IsDigit(source_[i]); };
    if (source_[at_] == '0' && at_ + 1 < source_.size() &&
        std::string_view("xXoObB").find(source_[at_ + 1]) != std::string_view::npos) {
      return Fail("only decimal numbers are supported");
    }
    // a.0.1 is two subscripts, not a number with a fraction.
    const bool behind_dot = at_ > 0 && source_[at_ - 1] == '.';
    bool is_float = false;
    digits();
    if (!behind_dot) {
      if (end < source_.size() && source_[end] == '.' && digit_at(end + 1)) {
        is_float = true;
        ++end;
        digits();
      }
      if (end < source_.size() && (source_[end] == 'e' || source_[end] == 'E')) {
        const size_t sign =
            end + 1 < source_.size() && (source_[end + 1] == '+' || source_[end + 1] == '-');
        if (digit_at(end + 1 + sign)) {
          is_float = true;
          end += 1 + sign;
          digits();
        }
      }
    }
    std::string text = source_.substr(at_, end - at_);
    std::erase(text, '_');
    tokens_.push_back({is_float ? TokenKind::kFloat : TokenKind::kInteger, text, line_});
    Skip(end - at_);
    return absl::OkStatus();
  }

  absl::Status String(char quote) {
    size_t end = at_ + 1;
    while (end < source_.size() && source_[end] != quote) end += source_[end] == '\\' ? 2 : 1;
    if (end >= source_.size()) return Fail("a string has no end");
    std::string text;
    for (size_t i = at_ + 1; i < end; ++i) {
      if (source_[i] != '\\') {
        text.push_back(source_[i]);
      } else {
        i = Escape(i + 1, end, &text);
      }
    }
    std::string whole;
    AppendLossy(text, &whole);
    tokens_.push_back({TokenKind::kString, std::move(whole), line_});
    Skip(end + 1 - at_);
    return absl::OkStatus();
  }

  // The escape whose letter stands at `at`; returns its last place.
  size_t Escape(size_t at, size_t end, std::string* out) const {
    const char c = source_[at];
    constexpr std::string_view kLetters = "abfnrtv\\'\"";
    constexpr std::string_view kMeanings = "\a\b\f\n\r\t\v\\'\"";
    if (const size_t named = kLetters.find(c); named != std::string_view::npos) {
      out->push_back(kMeanings[named]);
      return at;
    }
    if (c == '\n') return at;
    const size_t hex = c == 'x' ? 2 : c == 'u' ? 4 : c == 'U' ? 8 : 0;
    if (hex > 0 && at + hex < end) {
      const std::string digits = source_.substr(at + 1, hex);
      if (digits.find_first_not_of("0123456789abcdefABCDEF") == std::string::npos) {
        const unsigned long code = std::stoul(digits, nullptr, 16);
        const bool legal = code < 0xD800 || (code > 0xDFFF && code < 0x110000);
        AppendUtf8(legal ? static_cast<char32_t>(code) : 0xFFFD, out);
        return at + hex;
      }
    }
    if (c >= '0' && c <= '7') {
      char32_t code = 0;
      size_t last = at;
      for (; last < end && last < at + 3 && source_[last] >= '0' && source_[last] <= '7'; ++last) {
        code = code * 8 + (source_[last] - '0');
      }
      AppendUtf8(code, out);
      return last - 1;
    }
    out->push_back('\\');
    out->push_back(c);
    return at;
  }

  std::string source_;
  size_t at_ = 0;
  int line_ = 1;
  bool line_starting_ = true;  // the last tag ended with a line break, or there was none yet
  std::vector<Token> tokens_;
};

}  // namespace

absl::StatusOr<std::vector<Token>> Tokenize(std::string_view source) {
  std::string clean;
  AppendLossy(source, &clean);
  return Lexer(Normalized(clean)).Run();
}

}  // namespace switchyard::gateway::jinja
