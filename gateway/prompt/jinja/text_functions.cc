#include "gateway/prompt/jinja/text_functions.h"

#include <unicode/locid.h>
#include <unicode/uchar.h>
#include <unicode/unistr.h>

#include <algorithm>
#include <cstring>

#include "gateway/prompt/jinja/value.h"
#include "services/base/utf8.h"

namespace switchyard::gateway::jinja {
namespace {

template <typename InSet>
std::string_view StripIf(std::string_view text, Side side, InSet in_set) {
  if (side != Side::kRight) {
    while (!text.empty()) {
      const Utf8Char c = FirstUtf8(text);
      if (!in_set(c.code)) break;
      text.remove_prefix(c.size);
    }
  }
  if (side != Side::kLeft) {
    while (!text.empty()) {
      size_t at = text.size() - 1;
      while (at > 0 && (static_cast<uint8_t>(text[at]) & 0xC0) == 0x80) --at;
      if (!in_set(FirstUtf8(text.substr(at)).code)) break;
      text = text.substr(0, at);
    }
  }
  return text;
}

icu::UnicodeString ToIcu(std::string_view text) {
  return icu::UnicodeString::fromUTF8(
      icu::StringPiece(text.data(), static_cast<int32_t>(text.size())));
}

std::string FromIcu(const icu::UnicodeString& text) {
  std::string out;
  text.toUTF8String(out);
  return out;
}

}  // namespace

bool IsPythonSpace(char32_t code) { return IsUnicodeSpace(code) || (code >= 0x1C && code <= 0x1F); }

std::string_view Strip(std::string_view text, Side side) {
  return StripIf(text, side, IsPythonSpace);
}

std::string_view Strip(std::string_view text, Side side, std::string_view set) {
  std::u32string codes;
  for (std::string_view c : Characters(set)) codes.push_back(FirstUtf8(c).code);
  return StripIf(text, side,
                 [&](char32_t code) { return codes.find(code) != std::u32string::npos; });
}

std::string Upper(std::string_view text) {
  return FromIcu(ToIcu(text).toUpper(icu::Locale::getRoot()));
}

std::string Lower(std::string_view text) {
  return FromIcu(ToIcu(text).toLower(icu::Locale::getRoot()));
}

std::string Capitalize(std::string_view text) {
  if (text.empty()) return "";
  const size_t first = FirstUtf8(text).size;
  icu::UnicodeString head = ToIcu(text.substr(0, first));
  head.toTitle(nullptr, icu::Locale::getRoot());
  return FromIcu(head) + Lower(text.substr(first));
}

std::string TitleMethod(std::string_view text) {
  std::string out;
  bool in_word = false;
  for (std::string_view c : Characters(text)) {
    const auto code = static_cast<UChar32>(FirstUtf8(c).code);
    out.append(in_word ? Lower(c) : Capitalize(c));
    in_word = u_hasBinaryProperty(code, UCHAR_CASED);
  }
  return out;
}

std::string TitleFilter(std::string_view text) {
  std::string out;
  std::string_view word = text;
  const auto flush = [&](size_t size) {
    if (size > 0) {
      const size_t first = FirstUtf8(word).size;
      out.append(Upper(word.substr(0, first))).append(Lower(word.substr(first, size - first)));
    }
  };
  size_t size = 0;
  for (std::string_view c : Characters(text)) {
    const char32_t code = FirstUtf8(c).code;
    if (IsPythonSpace(code) ||
        (code < 0x80 && std::string_view("-({[<").find(c) != std::string_view::npos)) {
      flush(size);
      out.append(c);
      word.remove_prefix(size + c.size());
      size = 0;
    } else {
      size += c.size();
    }
  }
  flush(size);
  return out;
}

size_t FindPart(std::string_view text, std::string_view part) {
  const void* at = memmem(text.data(), text.size(), part.data(), part.size());
  if (at == nullptr) return std::string_view::npos;
  return static_cast<const char*>(at) - text.data();
}

std::string Replace(std::string_view text, std::string_view from, std::string_view to,
                    int64_t count) {
  std::string out;
  if (from.empty()) {  // between all characters
    for (std::string_view c : Characters(text)) {
      if (count != 0) out.append(to);
      if (count > 0) --count;
      out.append(c);
    }
    if (count != 0) out.append(to);
    return out;
  }
  for (; count != 0; --count) {
    const size_t at = FindPart(text, from);
    if (at == std::string_view::npos) break;
    out.append(text.substr(0, at)).append(to);
    text.remove_prefix(at + from.size());
  }
  return out.append(text);
}

std::vector<std::string_view> Split(std::string_view text, std::string_view separator,
                                    int64_t count, bool from_right) {
  std::vector<std::string_view> parts;
  for (; count != 0; --count) {
    const size_t at = from_right ? text.rfind(separator) : FindPart(text, separator);
    if (at == std::string_view::npos) break;
    if (from_right) {
      parts.push_back(text.substr(at + separator.size()));
      text = text.substr(0, at);
    } else {
      parts.push_back(text.substr(0, at));
      text.remove_prefix(at + separator.size());
    }
  }
  parts.push_back(text);
  if (from_right) std::reverse(parts.begin(), parts.end());
  return parts;
}

std::vector<std::string_view> SplitWords(std::string_view text, int64_t count, bool from_right) {
  const Side front = from_right ? Side::kRight : Side::kLeft;
  std::vector<std::string_view> parts;
  std::string_view rest = Strip(text, front);
  for (; !rest.empty() && count != 0; --count) {
    // The word at the front is what stripping everything but white space takes off.
    const std::string_view left =
        StripIf(rest, front, [](char32_t code) { return !IsPythonSpace(code); });
    const size_t size = rest.size() - left.size();
    parts.push_back(from_right ? rest.substr(left.size()) : rest.substr(0, size));
    rest = Strip(left, front);
  }
  if (!rest.empty()) parts.push_back(rest);
  if (from_right) std::reverse(parts.begin(), parts.end());
  return parts;
}

std::vector<std::string_view> SplitLines(std::string_view text, bool keep_ends) {
  std::vector<std::string_view> lines;
  const auto is_break = [](char32_t c) {
    return (c >= 0x0A && c <= 0x0D) || (c >= 0x1C && c <= 0x1E) || c == 0x85 || c == 0x2028 ||
           c == 0x2029;
  };
  size_t begin = 0;
  for (size_t at = 0; at < text.size();) {
    const Utf8Char c = FirstUtf8(text.substr(at));
    size_t end = at + c.size;
    if (is_break(c.code)) {
      if (c.code == '\r' && end < text.size() && text[end] == '\n') ++end;
      lines.push_back(text.substr(begin, (keep_ends ? end : at) - begin));
      begin = end;
    }
    at = end;
  }
  if (begin < text.size()) lines.push_back(text.substr(begin));
  return lines;
}

}  // namespace switchyard::gateway::jinja
