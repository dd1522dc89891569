// Python's two ways to format: printf style (%) and str.format.
#include <fmt/format.h>
#include <fmt/printf.h>

#include <cctype>
#include <string>
#include <string_view>

#include "gateway/prompt/jinja/renderer.h"
#include "services/base/status.h"
#include "services/base/utf8.h"

namespace switchyard::gateway::jinja {
namespace {

constexpr int kWidthMax = 10000;

// flags, width and precision of a conversion.
struct Conversion {
  bool minus = false;
  bool plus = false;
  bool space = false;
  bool zero = false;
  bool alternate = false;
  int width = 0;
  int precision = -1;
  char type = 's';
};

// Spaces (or zeros behind the sign) up to the width.
std::string Padded(std::string text, const Conversion& c, bool number) {
  const int64_t missing = c.width - CharacterCount(text);
  if (missing <= 0) return text;
  if (c.minus) return text.append(missing, ' ');
  if (c.zero && number) {
    const size_t sign = !text.empty() && (text[0] == '-' || text[0] == '+' || text[0] == ' ');
    return text.insert(sign, missing, '0');
  }
  return text.insert(0, missing, ' ');
}

std::string Signed(std::string digits, bool negative, const Conversion& c) {
  const char* sign = negative ? "-" : c.plus ? "+" : c.space ? " " : "";
  return sign + digits;
}

absl::StatusOr<std::string> FormatNumber(const Value& value, const Conversion& c) {
  if (!value.IsNumber()) {
    return InvalidArgument("%{} format: a number is required, not {}", c.type, value.TypeName());
  }
  if (std::string_view("diuxXo").find(c.type) != std::string_view::npos) {
    const int64_t whole =
        value.IsFloat() ? static_cast<int64_t>(std::max(-9e18, std::min(9e18, value.number())))
                        : value.integer();
    const uint64_t size = whole < 0 ? 0 - static_cast<uint64_t>(whole) : whole;
    std::string digits = c.type == 'x'   ? fmt::format("{:x}", size)
                         : c.type == 'X' ? fmt::format("{:X}", size)
                         : c.type == 'o' ? fmt::format("{:o}", size)
                                         : std::to_string(size);
    while (static_cast<int>(digits.size()) < c.precision) digits.insert(0, 1, '0');
    return Padded(Signed(std::move(digits), whole < 0, c), c, true);
  }
  const double number = value.number();
  const int precision = c.precision < 0 ? 6 : c.precision;
  const double size = number < 0 ? -number : number;
  std::string digits = fmt::sprintf(std::string("%.*") + c.type, precision, size);
  return Padded(Signed(std::move(digits), number < 0, c), c, true);
}

absl::StatusOr<std::string> FormatOne(Renderer& renderer, const Value& value, const Conversion& c) {
  std::string text;
  if (c.type == 's') {
    SY_ASSIGN_OR_RETURN(text, renderer.ToText(value));
  } else if (c.type == 'r') {
    SY_ASSIGN_OR_RETURN(text, ToRepr(value, renderer.limits().output_bytes_max));
  } else {
    return FormatNumber(value, c);
  }
  if (c.precision >= 0 && CharacterCount(text) > c.precision) {
    std::string cut;
    for (std::string_view character : Characters(text)) {
      if (CharacterCount(cut) == c.precision) break;
      cut.append(character);
    }
    text = std::move(cut);
  }
  return Padded(std::move(text), c, false);
}

class PercentFormatter {
 public:
  PercentFormatter(Renderer& renderer, std::string_view format, const Value& value)
      : renderer_(renderer), rest_(format), value_(value) {}

  absl::StatusOr<Value> Run() {
    std::string out;
    while (!rest_.empty()) {
      const size_t at = rest_.find('%');
      out.append(rest_.substr(0, at));
      if (at == std::string_view::npos) break;
      rest_.remove_prefix(at + 1);
      if (!rest_.empty() && rest_[0] == '%') {
        out.push_back('%');
        rest_.remove_prefix(1);
        continue;
      }
      SY_ASSIGN_OR_RETURN(const std::string part, Conversion1());
      SY_RETURN_IF_ERROR(renderer_.Charge(part.size()));
      out.append(part);
    }
    const bool tuple = value_.IsList() && value_.list().tuple;
    const size_t given = tuple ? value_.list().items.size() : value_.IsDict() ? 0 : 1;
    if (used_ < given) return InvalidArgument("not all arguments converted during formatting");
    return renderer_.Text(std::move(out));
  }

 private:
  int Number() {
    int number = 0;
    while (!rest_.empty() && rest_[0] >= '0' && rest_[0] <= '9') {
      number = std::min(number * 10 + (rest_[0] - '0'), kWidthMax);
      rest_.remove_prefix(1);
    }
    return number;
  }

  absl::StatusOr<std::string> Conversion1() {
    const Value* value = nullptr;
    if (!rest_.empty() && rest_[0] == '(') {
      const size_t end = rest_.find(')');
      if (end == std::string_view::npos) return InvalidArgument("incomplete format key");
      if (!value_.IsDict()) return InvalidArgument("format requires a mapping");
      value = value_.dict().FindText(rest_.substr(1, end - 1));
      if (value == nullptr) return InvalidArgument("no '{}' to format", rest_.substr(1, end - 1));
      rest_.remove_prefix(end + 1);
    }
    Conversion c;
    for (; !rest_.empty(); rest_.remove_prefix(1)) {
      const char flag = rest_[0];
      if (flag == '-')
        c.minus = true;
      else if (flag == '+')
        c.plus = true;
      else if (flag == ' ')
        c.space = true;
      else if (flag == '0')
        c.zero = true;
      else if (flag == '#')
        c.alternate = true;
      else
        break;
    }
    c.width = Number();
    if (!rest_.empty() && rest_[0] == '.') {
      rest_.remove_prefix(1);
      c.precision = std::min(Number(), 300);
    }
    if (rest_.empty()) return InvalidArgument("incomplete format");
    c.type = rest_[0];
    rest_.remove_prefix(1);
    if (c.alternate || std::string_view("srdiuxXofFeEgG").find(c.type) == std::string_view::npos) {
      return InvalidArgument("unsupported format character '{}'", c.type);
    }
    if (value == nullptr) {
      SY_ASSIGN_OR_RETURN(value, NextValue());
    }
    return FormatOne(renderer_, *value, c);
  }

  absl::StatusOr<const Value*> NextValue() {
    const bool tuple = value_.IsList() && value_.list().tuple;
    const size_t given = tuple ? value_.list().items.size() : 1;
    if (used_ >= given) return InvalidArgument("not enough arguments for format string");
    const size_t i = used_++;
    return tuple ? &value_.list().items[i] : &value_;
  }

  Renderer& renderer_;
  std::string_view rest_;
  const Value& value_;
  size_t used_ = 0;
};

class BraceFormatter {
 public:
  BraceFormatter(Renderer& renderer, std::string_view format, const Arguments& arguments)
      : renderer_(renderer), rest_(format), arguments_(arguments) {}

  absl::StatusOr<Value> Run() {
    std::string out;
    while (!rest_.empty()) {
      const size_t at = rest_.find_first_of("{}");
      out.append(rest_.substr(0, at));
      if (at == std::string_view::npos) break;
      rest_.remove_prefix(at);
      if (rest_.size() >= 2 && rest_[0] == rest_[1]) {
        out.push_back(rest_[0]);
        rest_.remove_prefix(2);
        continue;
      }
      const size_t end = rest_.find('}');
      if (rest_[0] == '}' || end == std::string_view::npos) {
        return InvalidArgument("single '{}' encountered in format string", rest_[0]);
      }
      SY_ASSIGN_OR_RETURN(const std::string part, Field(rest_.substr(1, end - 1)));
      SY_RETURN_IF_ERROR(renderer_.Charge(part.size()));
      out.append(part);
      rest_.remove_prefix(end + 1);
    }
    return renderer_.Text(std::move(out));
  }

 private:
  absl::StatusOr<std::string> Field(std::string_view field) {
    const size_t colon = field.find(':');
    const std::string_view name = field.substr(0, colon);
    const std::string_view spec =
        colon == std::string_view::npos ? std::string_view() : field.substr(colon + 1);
    SY_ASSIGN_OR_RETURN(const Value value, Find(name));
    if (spec.empty()) return renderer_.ToText(value);
    return WithSpec(value, spec);
  }

  absl::StatusOr<Value> Find(std::string_view name) {
    if (name.find_first_of(".[!{") != std::string_view::npos) {
      return InvalidArgument("format: the field '{}' is not supported", name);
    }
    size_t index = 0;
    if (name.empty()) {
      index = next_++;
    } else if (name.find_first_not_of("0123456789") == std::string_view::npos && name.size() < 6) {
      index = std::stoul(std::string(name));
    } else {
      for (const auto& [key, value] : arguments_.named) {
        if (key == name) return value;
      }
      return InvalidArgument("format: no argument '{}'", name);
    }
    if (index >= arguments_.positional.size()) {
      return InvalidArgument("format: no argument number {}", index);
    }
    return arguments_.positional[index];
  }

  // [<>][0][width][.precision][type]
  absl::StatusOr<std::string> WithSpec(const Value& value, std::string_view spec) {
    Conversion c;
    const bool aligned = spec[0] == '<' || spec[0] == '>';
    c.minus = aligned ? spec[0] == '<' : !value.IsNumber();
    if (aligned) spec.remove_prefix(1);
    const auto number = [&] {
      int result = 0;
      while (!spec.empty() && spec[0] >= '0' && spec[0] <= '9') {
        result = std::min(result * 10 + (spec[0] - '0'), kWidthMax);
        spec.remove_prefix(1);
      }
      return result;
    };
    if (!spec.empty() && spec[0] == '0' && !aligned) c.zero = true;
    c.width = number();
    if (!spec.empty() && spec[0] == '.') {
      spec.remove_prefix(1);
      c.precision = std::min(number(), 300);
    }
    c.type = value.IsNumber() && !value.IsFloat() ? 'd' : 's';
    if (spec.size() == 1 &&
        std::string_view("sdxXofFeEgG").find(spec[0]) != std::string_view::npos) {
      c.type = spec[0];
    } else if (!spec.empty()) {
      return InvalidArgument("format: the specification '{}' is not supported", spec);
    }
    return FormatOne(renderer_, value, c);
  }

  Renderer& renderer_;
  std::string_view rest_;
  const Arguments& arguments_;
  size_t next_ = 0;
};

}  // namespace

absl::StatusOr<Value> PercentFormat(Renderer& renderer, const std::string& format,
                                    const Value& value) {
  return PercentFormatter(renderer, format, value).Run();
}

absl::StatusOr<Value> BraceFormat(Renderer& renderer, const std::string& format,
                                  const Arguments& arguments) {
  return BraceFormatter(renderer, format, arguments).Run();
}

}  // namespace switchyard::gateway::jinja
