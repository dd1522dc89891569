// How values look: str(), repr() and json.dumps() of Python.
#include <unicode/uchar.h>

#include <algorithm>
#include <charconv>
#include <cmath>

#include "gateway/prompt/jinja/value.h"
#include "services/base/status.h"
#include "services/base/utf8.h"

namespace switchyard::gateway::jinja {
namespace {

absl::Status TooLong(size_t bytes_max) {
  return ResourceExhausted("a text is longer than {} bytes", bytes_max);
}

bool IsPrintable(char32_t code) {
  if (code == ' ') return true;
  constexpr uint32_t kMask = U_GC_C_MASK | U_GC_Z_MASK;
  return (U_GET_GC_MASK(static_cast<UChar32>(code)) & kMask) == 0;
}

void AppendStringRepr(const std::string& text, std::string* out) {
  const bool single = text.find('\'') == std::string::npos || text.find('"') != std::string::npos;
  const char quote = single ? '\'' : '"';
  out->push_back(quote);
  for (std::string_view c : Characters(text)) {
    const char32_t code = FirstUtf8(c).code;
    if (code == '\n') {
      out->append("\\n");
    } else if (code == '\r') {
      out->append("\\r");
    } else if (code == '\t') {
      out->append("\\t");
    } else if (code == '\\' || code == static_cast<char32_t>(quote)) {
      out->append("\\").append(c);
    } else if (IsPrintable(code)) {
      out->append(c);
    } else if (code < 0x100) {
      out->append(fmt::format("\\x{:02x}", static_cast<uint32_t>(code)));
    } else if (code < 0x10000) {
      out->append(fmt::format("\\u{:04x}", static_cast<uint32_t>(code)));
    } else {
      out->append(fmt::format("\\U{:08x}", static_cast<uint32_t>(code)));
    }
  }
  out->push_back(quote);
}

class ReprWriter {
 public:
  explicit ReprWriter(size_t bytes_max) : bytes_max_(bytes_max) {}

  absl::Status Write(const Value& value, int depth) {
    if (depth > 2 * kValueDepthMax) return InvalidArgument("a value is nested too deep to print");
    if (out.size() > bytes_max_) return TooLong(bytes_max_);
    if (value.IsString()) {
      AppendStringRepr(value.str(), &out);
    } else if (value.IsList()) {
      return WriteList(value.list(), depth);
    } else if (value.IsDict()) {
      return WriteDict(value.dict(), depth);
    } else if (value.IsNamespace()) {
      out.append("<Namespace ");
      SY_RETURN_IF_ERROR(WriteDict(value.ns().attributes, depth));
      out.push_back('>');
    } else {
      out.append(Scalar(value));
    }
    return absl::OkStatus();
  }

  static std::string Scalar(const Value& value) {
    if (value.IsNone()) return "None";
    if (value.IsUndefined()) return "Undefined";
    if (value.IsBool()) return value.boolean() ? "True" : "False";
    if (value.IsInt()) return std::to_string(value.integer());
    if (value.IsFloat()) return FloatText(value.number());
    return fmt::format("<function {}>", value.callable().name);
  }

  std::string out;

 private:
  absl::Status WriteList(const List& list, int depth) {
    out.push_back(list.tuple ? '(' : '[');
    for (size_t i = 0; i < list.items.size(); ++i) {
      if (i > 0) out.append(", ");
      SY_RETURN_IF_ERROR(Write(list.items[i], depth + 1));
    }
    if (list.tuple && list.items.size() == 1) out.push_back(',');
    out.push_back(list.tuple ? ')' : ']');
    return absl::OkStatus();
  }

  absl::Status WriteDict(const Dict& dict, int depth) {
    out.push_back('{');
    for (size_t i = 0; i < dict.items.size(); ++i) {
      if (i > 0) out.append(", ");
      SY_RETURN_IF_ERROR(Write(dict.items[i].first, depth + 1));
      out.append(": ");
      SY_RETURN_IF_ERROR(Write(dict.items[i].second, depth + 1));
    }
    out.push_back('}');
    return absl::OkStatus();
  }

  size_t bytes_max_;
};

class JsonWriter {
 public:
  JsonWriter(const JsonStyle& style, size_t bytes_max) : style_(style), bytes_max_(bytes_max) {
    item_separator_ = !style.item_separator.empty() ? style.item_separator
                      : style.indent >= 0           ? ","
                                                    : ", ";
  }

  absl::Status Write(const Value& value, int level) {
    if (out.size() > bytes_max_) return TooLong(bytes_max_);
    if (value.IsString()) {
      WriteString(value.str());
    } else if (value.IsNone()) {
      out.append("null");
    } else if (value.IsBool()) {
      out.append(value.boolean() ? "true" : "false");
    } else if (value.IsInt()) {
      out.append(std::to_string(value.integer()));
    } else if (value.IsFloat()) {
      out.append(FloatJson(value.number()));
    } else if (value.IsList()) {
      return WriteList(value.list(), level);
    } else if (value.IsDict()) {
      return WriteDict(value.dict(), level);
    } else {
      return InvalidArgument("Object of type {} is not JSON serializable", value.TypeName());
    }
    return absl::OkStatus();
  }

  std::string out;

 private:
  static std::string FloatJson(double number) {
    if (std::isnan(number)) return "NaN";
    if (std::isinf(number)) return number > 0 ? "Infinity" : "-Infinity";
    return FloatText(number);
  }

  void NewLine(int level) {
    if (style_.indent < 0) return;
    out.push_back('\n');
    out.append(static_cast<size_t>(level) * style_.indent, ' ');
  }

  absl::Status WriteList(const List& list, int level) {
    out.push_back('[');
    for (size_t i = 0; i < list.items.size(); ++i) {
      if (i > 0) out.append(item_separator_);
      NewLine(level + 1);
      SY_RETURN_IF_ERROR(Write(list.items[i], level + 1));
    }
    if (!list.items.empty()) NewLine(level);
    out.push_back(']');
    return absl::OkStatus();
  }

  absl::Status WriteDict(const Dict& dict, int level) {
    std::vector<const std::pair<Value, Value>*> items;
    for (const auto& item : dict.items) items.push_back(&item);
    if (style_.sort_keys) {
      absl::Status bad = absl::OkStatus();
      std::stable_sort(items.begin(), items.end(), [&](const auto* a, const auto* b) {
        const auto order = Compare(a->first, b->first);
        if (!order.ok()) bad = order.status();
        return order.ok() && *order < 0;
      });
      SY_RETURN_IF_ERROR(bad);
    }
    out.push_back('{');
    for (size_t i = 0; i < items.size(); ++i) {
      if (i > 0) out.append(item_separator_);
      NewLine(level + 1);
      SY_RETURN_IF_ERROR(WriteKey(items[i]->first));
      out.append(style_.key_separator);
      SY_RETURN_IF_ERROR(Write(items[i]->second, level + 1));
    }
    if (!items.empty()) NewLine(level);
    out.push_back('}');
    return absl::OkStatus();
  }

  absl::Status WriteKey(const Value& key) {
    if (key.IsString()) {
      WriteString(key.str());
      return absl::OkStatus();
    }
    if (key.IsList()) return InvalidArgument("keys must be str, int, float, bool or None");
    out.push_back('"');
    SY_RETURN_IF_ERROR(Write(key, 0));
    out.push_back('"');
    return absl::OkStatus();
  }

  void WriteString(const std::string& text) {
    out.push_back('"');
    std::string_view rest = text;
    while (!rest.empty()) {
      const Utf8Char c = FirstUtf8(rest);
      WriteChar(c.code, rest.substr(0, c.size));
      rest.remove_prefix(c.size);
    }
    out.push_back('"');
  }

  void WriteChar(char32_t code, std::string_view bytes) {
    constexpr std::string_view kNamed = "\"\\\n\r\t\f\b";
    constexpr std::string_view kLetters = "\"\\nrtfb";
    const size_t named =
        code < 0x80 ? kNamed.find(static_cast<char>(code)) : std::string_view::npos;
    if (named != std::string_view::npos) {
      out.push_back('\\');
      out.push_back(kLetters[named]);
    } else if (code < 0x20 || (style_.ensure_ascii && code > 0x7E && code < 0x10000)) {
      out.append(fmt::format("\\u{:04x}", static_cast<uint32_t>(code)));
    } else if (style_.ensure_ascii && code >= 0x10000) {
      const uint32_t rest = static_cast<uint32_t>(code) - 0x10000;
      out.append(fmt::format("\\u{:04x}\\u{:04x}", 0xD800 + (rest >> 10), 0xDC00 + (rest & 0x3FF)));
    } else {
      out.append(bytes);
    }
  }

  const JsonStyle& style_;
  std::string item_separator_;
  size_t bytes_max_;
};

}  // namespace

// The shortest digits that read back equal, with Python's choice of exponent.
std::string FloatText(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
  char buffer[400];
  const double size = std::fabs(value);
  const bool fixed = size == 0 || (size >= 1e-4 && size < 1e16);
  const auto end = std::to_chars(buffer, buffer + sizeof(buffer), value,
                                 fixed ? std::chars_format::fixed : std::chars_format::scientific);
  std::string text(buffer, end.ptr);
  if (fixed && text.find('.') == std::string::npos) text.append(".0");
  return text;
}

absl::StatusOr<std::string> ToRepr(const Value& value, size_t bytes_max) {
  ReprWriter writer(bytes_max);
  SY_RETURN_IF_ERROR(writer.Write(value, 0));
  return std::move(writer.out);
}

absl::StatusOr<std::string> ToText(const Value& value, size_t bytes_max) {
  if (value.IsString()) return value.str();
  if (value.IsUndefined()) return std::string();
  return ToRepr(value, bytes_max);
}

absl::StatusOr<std::string> ToJson(const Value& value, const JsonStyle& style, size_t bytes_max) {
  JsonWriter writer(style, bytes_max);
  SY_RETURN_IF_ERROR(writer.Write(value, 0));
  return std::move(writer.out);
}

}  // namespace switchyard::gateway::jinja
