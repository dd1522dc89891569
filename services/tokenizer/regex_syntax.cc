// From Oniguruma's syntax to PCRE2's.
#include <algorithm>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "services/base/status.h"
#include "services/tokenizer/regex.h"

namespace switchyard {
namespace {

// White_Space; PCRE2's own \s also takes U+180E.
constexpr std::string_view kSpaces =
    "\\x{09}-\\x{0D}\\x{20}\\x{85}\\x{A0}\\x{1680}\\x{2000}-\\x{200A}\\x{2028}\\x{2029}\\x{202F}"
    "\\x{205F}\\x{3000}";
// Alphabetic, marks, decimal digits, connectors; PCRE2's own \w is L, N and underscore.
constexpr std::string_view kWords =
    "\\p{L}\\p{M}\\p{Nd}\\p{Nl}\\p{Pc}\\x{24B6}-\\x{24E9}\\x{1F130}-\\x{1F149}\\x{1F150}-\\x{1F169}"
    "\\x{1F170}-\\x{1F189}";

constexpr size_t kPatternBytesMax = 64 * 1024;

class Translator {
 public:
  explicit Translator(std::string_view pattern) : whole_(pattern), rest_(pattern) {}

  absl::StatusOr<std::string> Run() {
    while (!rest_.empty()) {
      absl::Status status = absl::OkStatus();
      switch (rest_[0]) {
        case '\\':
          status = Escape(/*in_set=*/false);
          break;
        case '[':
          status = Set();
          break;
        case '(':
          status = Group();
          break;
        case '}':
          status = EndOfInterval();
          break;
        default:
          Copy(1);
      }
      SY_RETURN_IF_ERROR(status);
    }
    return std::move(out_);
  }

 private:
  absl::Status Refuse(std::string_view what) const {
    return InvalidArgument("pattern \"{}\": {} is not supported", whole_, what);
  }

  void Copy(size_t count) {
    count = std::min(count, rest_.size());
    out_.append(rest_.substr(0, count));
    rest_.remove_prefix(count);
  }

  void Replace(size_t count, std::string_view text) {
    out_.append(text);
    rest_.remove_prefix(count);
  }

  void ReplaceSet(bool in_set, bool negated, std::string_view members) {
    rest_.remove_prefix(2);
    if (!in_set) out_.append(negated ? "[^" : "[");
    out_.append(members);
    if (!in_set) out_.append("]");
  }

  absl::Status Escape(bool in_set) {
    if (rest_.size() < 2) return Refuse("a backslash at the end");
    switch (rest_[1]) {
      case 's':
        ReplaceSet(in_set, false, kSpaces);
        return absl::OkStatus();
      case 'w':
        ReplaceSet(in_set, false, kWords);
        return absl::OkStatus();
      case 'd':
        Replace(2, "\\p{Nd}");
        return absl::OkStatus();
      case 'D':
        Replace(2, "\\P{Nd}");
        return absl::OkStatus();
      case 'v':
        Replace(2, "\\x{0B}");
        return absl::OkStatus();
      case 'u':
        return HexEscape();
      case 'S':
      case 'W':
        if (in_set) return Refuse(std::string("\\") + rest_[1] + " inside a set");
        ReplaceSet(false, true, rest_[1] == 'S' ? kSpaces : kWords);
        return absl::OkStatus();
      default:
        if (std::string_view("hHRXKkgGOyYNQEco123456789").find(rest_[1]) !=
            std::string_view::npos) {
          return Refuse(rest_.substr(0, 2));
        }
        // A name in braces belongs to the escape: \p{L}, \x{3040}.
        Copy(rest_.substr(2, 1) == "{" && rest_.find('}') < rest_.size() ? rest_.find('}') + 1 : 2);
        return absl::OkStatus();
    }
  }

  absl::Status HexEscape() {
    const std::string_view digits = rest_.substr(2, 4);
    if (digits.size() != 4 ||
        digits.find_first_not_of("0123456789abcdefABCDEF") != std::string_view::npos) {
      return Refuse("\\u without four digits");
    }
    out_.append("\\x{").append(digits).append("}");
    rest_.remove_prefix(6);
    return absl::OkStatus();
  }

  absl::Status Set() {
    Copy(1);
    if (!rest_.empty() && rest_[0] == '^') Copy(1);
    if (!rest_.empty() && rest_[0] == ']') return Refuse("a set that begins with ]");
    while (!rest_.empty() && rest_[0] != ']') {
      if (rest_[0] == '\\') {
        SY_RETURN_IF_ERROR(Escape(/*in_set=*/true));
      } else if (rest_[0] == '[') {
        return Refuse("a set inside a set");
      } else if (rest_.substr(0, 2) == "&&") {
        return Refuse("&& in a set");
      } else {
        Copy(1);
      }
    }
    if (rest_.empty()) return Refuse("a set without end");
    Copy(1);
    return absl::OkStatus();
  }

  absl::Status Group() {
    if (rest_.size() < 2 || rest_[1] != '?') {
      if (rest_.substr(0, 2) == "(*") return Refuse("(*");
      Copy(1);
      return absl::OkStatus();
    }
    for (std::string_view opening : {"(?:", "(?=", "(?!", "(?<=", "(?<!", "(?>", "(?i:", "(?-i:"}) {
      if (rest_.substr(0, opening.size()) == opening) {
        Copy(opening.size());
        return absl::OkStatus();
      }
    }
    return Refuse(rest_.substr(0, 4));
  }

  // {n,m}+ repeats the interval in Ruby's syntax, and is possessive in PCRE2's.
  absl::Status EndOfInterval() {
    if (rest_.substr(0, 2) == "}+") return Refuse("an interval followed by +");
    Copy(1);
    return absl::OkStatus();
  }

  std::string_view whole_;
  std::string_view rest_;
  std::string out_;
};

}  // namespace

absl::StatusOr<std::string> TranslateOniguruma(std::string_view pattern) {
  if (pattern.size() > kPatternBytesMax) {
    return InvalidArgument("pattern of {} bytes; at most {}", pattern.size(), kPatternBytesMax);
  }
  return Translator(pattern).Run();
}

}  // namespace switchyard
