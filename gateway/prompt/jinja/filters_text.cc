#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "gateway/prompt/jinja/arguments.h"
#include "gateway/prompt/jinja/filters.h"
#include "gateway/prompt/jinja/parser.h"
#include "gateway/prompt/jinja/text_functions.h"
#include "services/base/status.h"

namespace switchyard::gateway::jinja {
namespace {

using Result = absl::StatusOr<Value>;

template <std::string (*map)(std::string_view)>
Result MapText(Renderer& renderer, const Value& on, const Arguments& arguments) {
  SY_RETURN_IF_ERROR(BoundArguments::Bind("this filter", arguments, {}).status());
  SY_ASSIGN_OR_RETURN(const std::string text, renderer.ToText(on));
  return renderer.Text(map(text));
}

Result ToJsonFilter(Renderer& renderer, const Value& on, const Arguments& arguments) {
  SY_ASSIGN_OR_RETURN(const auto a,
                      BoundArguments::Bind("tojson", arguments,
                                           {"ensure_ascii", "indent", "separators", "sort_keys"}));
  JsonStyle style;
  style.ensure_ascii = a.Bool(0, false);
  if (a.GetNotNone(1) != nullptr) {
    SY_ASSIGN_OR_RETURN(const int64_t indent, a.Int(1, 0));
    style.indent = static_cast<int>(std::clamp<int64_t>(indent, 0, 64));
  }
  if (const Value* separators = a.GetNotNone(2); separators != nullptr) {
    SY_ASSIGN_OR_RETURN(const Values two, renderer.Items(*separators));
    if (two.size() != 2 || !two[0].IsString() || !two[1].IsString()) {
      return InvalidArgument("tojson: separators must be two strings");
    }
    style.item_separator = two[0].str();
    style.key_separator = two[1].str();
  }
  style.sort_keys = a.Bool(3, false);
  SY_ASSIGN_OR_RETURN(std::string text, renderer.ToJson(on, style));
  return renderer.Text(std::move(text));
}

Result Trim(Renderer& renderer, const Value& on, const Arguments& arguments) {
  SY_ASSIGN_OR_RETURN(const auto a, BoundArguments::Bind("trim", arguments, {"chars"}));
  SY_ASSIGN_OR_RETURN(const std::string text, renderer.ToText(on));
  if (a.GetNotNone(0) == nullptr) return renderer.Text(std::string(Strip(text, Side::kBoth)));
  SY_ASSIGN_OR_RETURN(const std::string set, a.Text(0, ""));
  return renderer.Text(std::string(Strip(text, Side::kBoth, set)));
}

Result Identity(Renderer&, const Value& on, const Arguments&) { return on; }

Result StringFilter(Renderer& renderer, const Value& on, const Arguments& arguments) {
  SY_RETURN_IF_ERROR(BoundArguments::Bind("string", arguments, {}).status());
  SY_ASSIGN_OR_RETURN(std::string text, renderer.ToText(on));
  return renderer.Text(std::move(text));
}

Result ReplaceFilter(Renderer& renderer, const Value& on, const Arguments& arguments) {
  SY_ASSIGN_OR_RETURN(std::string text, renderer.ToText(on));
  Arguments texts;
  for (const Value& value : arguments.positional) {
    // Old and new are taken as texts, whatever they are.
    if (texts.positional.size() < 2 && !value.IsString()) {
      SY_ASSIGN_OR_RETURN(std::string shown, renderer.ToText(value));
      texts.positional.emplace_back(std::move(shown));
    } else {
      texts.positional.push_back(value);
    }
  }
  texts.named = arguments.named;
  return CallMethod(renderer, Value(std::move(text)), "replace", texts);
}

Result Default(Renderer&, const Value& on, const Arguments& arguments) {
  SY_ASSIGN_OR_RETURN(const auto a,
                      BoundArguments::Bind("default", arguments, {"default_value", "boolean"}));
  const bool missing = on.IsUndefined() || (a.Bool(1, false) && !on.Truthy());
  if (!missing) return on;
  return a.Get(0) == nullptr ? Value("") : *a.Get(0);
}

Result Format(Renderer& renderer, const Value& on, const Arguments& arguments) {
  SY_ASSIGN_OR_RETURN(const std::string text, renderer.ToText(on));
  if (!arguments.named.empty()) {
    if (!arguments.positional.empty()) {
      return InvalidArgument("format: positional or keyword arguments, not both");
    }
    Dict dict;
    for (const auto& [name, value] : arguments.named) SY_RETURN_IF_ERROR(dict.Set(name, value));
    SY_ASSIGN_OR_RETURN(const Value values, MakeDict(std::move(dict)));
    return PercentFormat(renderer, text, values);
  }
  SY_ASSIGN_OR_RETURN(const Value values, MakeList(arguments.positional, true));
  return PercentFormat(renderer, text, values);
}

Result Indent(Renderer& renderer, const Value& on, const Arguments& arguments) {
  SY_ASSIGN_OR_RETURN(const auto a,
                      BoundArguments::Bind("indent", arguments, {"width", "first", "blank"}));
  SY_ASSIGN_OR_RETURN(std::string text, renderer.ToText(on));
  std::string indent(4, ' ');
  if (a.Get(0) != nullptr && a.Get(0)->IsString()) {
    indent = a.Get(0)->str();
  } else {
    SY_ASSIGN_OR_RETURN(const int64_t width, a.Int(0, 4));
    indent.assign(std::clamp<int64_t>(width, 0, 1000), ' ');
  }
  const bool blank = a.Bool(2, false);
  text += "\n";  // so that a break at the end is a line of its own
  const std::vector<std::string_view> lines = SplitLines(text, false);
  std::string out = a.Bool(1, false) ? indent : "";
  for (size_t i = 0; i < lines.size(); ++i) {
    if (i > 0) {
      out += "\n";
      if (blank || !lines[i].empty()) out += indent;
    }
    out += lines[i];
    SY_RETURN_IF_ERROR(renderer.Charge(indent.size() + lines[i].size()));
  }
  return renderer.Text(std::move(out));
}

Result Int(Renderer&, const Value& on, const Arguments& arguments) {
  SY_ASSIGN_OR_RETURN(const auto a, BoundArguments::Bind("int", arguments, {"default", "base"}));
  const Value fallback = a.Get(0) == nullptr ? Value(0) : *a.Get(0);
  if (on.IsInt() || on.IsBool()) return Value(on.integer());
  double number = 0;
  if (on.IsFloat()) {
    number = on.number();
  } else if (on.IsString()) {
    const std::string text(Strip(on.str(), Side::kBoth));
    SY_ASSIGN_OR_RETURN(const int64_t base, a.Int(1, 10));
    if (base < 2 || base > 36) return InvalidArgument("int: bad base {}", base);
    char* end = nullptr;
    errno = 0;
    const long long whole = std::strtoll(text.c_str(), &end, static_cast<int>(base));
    if (!text.empty() && *end == '\0' && errno == 0) return Value(static_cast<int64_t>(whole));
    number = std::strtod(text.c_str(), &end);
    if (text.empty() || *end != '\0') return fallback;
  } else {
    return fallback;
  }
  if (!(std::fabs(number) < 9e18)) return fallback;
  return Value(static_cast<int64_t>(number));
}

Result Float(Renderer&, const Value& on, const Arguments& arguments) {
  SY_ASSIGN_OR_RETURN(const auto a, BoundArguments::Bind("float", arguments, {"default"}));
  if (on.IsNumber()) return Value(on.number());
  if (on.IsString()) {
    const std::string text(Strip(on.str(), Side::kBoth));
    char* end = nullptr;
    const double number = std::strtod(text.c_str(), &end);
    if (!text.empty() && *end == '\0') return Value(number);
  }
  return a.Get(0) == nullptr ? Value(0.0) : *a.Get(0);
}

Result Abs(Renderer&, const Value& on, const Arguments&) {
  if (on.IsFloat()) return Value(std::fabs(on.number()));
  if (!on.IsNumber() || on.integer() == INT64_MIN) return InvalidArgument("abs: a number expected");
  return Value(std::abs(on.integer()));
}

Result Round(Renderer&, const Value& on, const Arguments& arguments) {
  SY_ASSIGN_OR_RETURN(const auto a,
                      BoundArguments::Bind("round", arguments, {"precision", "method"}));
  SY_ASSIGN_OR_RETURN(const int64_t precision, a.Int(0, 0));
  SY_ASSIGN_OR_RETURN(const std::string method, a.Text(1, "common"));
  if (!on.IsNumber()) return InvalidArgument("round: a number expected, not {}", on.TypeName());
  if (precision < -300 || precision > 300) return InvalidArgument("round: bad precision");
  const double scale = std::pow(10.0, static_cast<double>(precision));
  if (method == "ceil") return Value(std::ceil(on.number() * scale) / scale);
  if (method == "floor") return Value(std::floor(on.number() * scale) / scale);
  if (method != "common") return InvalidArgument("round: method must be common, ceil or floor");
  if (on.IsInt()) {  // stays whole; of two equally near the even one
    if (precision >= 0) return on;
    const double rounded = std::nearbyint(on.number() * scale) / scale;
    return std::fabs(rounded) < 9e18 ? Value(static_cast<int64_t>(rounded)) : Value(rounded);
  }
  if (precision <= 0 || !std::isfinite(on.number())) {
    return Value(std::nearbyint(on.number() * scale) / scale);
  }
  // Rounding the exact decimal value, as Python does, is what printing does.
  return Value(std::strtod(fmt::format("{:.{}f}", on.number(), static_cast<int>(precision)).c_str(),
                           nullptr));
}

Result Escape(Renderer& renderer, const Value& on, const Arguments&) {
  SY_ASSIGN_OR_RETURN(const std::string text, renderer.ToText(on));
  std::string out;
  for (char c : text) {
    if (c == '&')
      out += "&amp;";
    else if (c == '<')
      out += "&lt;";
    else if (c == '>')
      out += "&gt;";
    else if (c == '\'')
      out += "&#39;";
    else if (c == '"')
      out += "&#34;";
    else
      out.push_back(c);
  }
  return renderer.Text(std::move(out));
}

Result WordCount(Renderer& renderer, const Value& on, const Arguments&) {
  SY_ASSIGN_OR_RETURN(const std::string text, renderer.ToText(on));
  return Value(SplitWords(text, -1, false).size());
}

}  // namespace

void AddTextFilters(FilterTable* table) {
  table->insert({{"tojson", ToJsonFilter},
                 {"trim", Trim},
                 {"upper", MapText<Upper>},
                 {"lower", MapText<Lower>},
                 {"capitalize", MapText<Capitalize>},
                 {"title", MapText<TitleFilter>},
                 {"replace", ReplaceFilter},
                 {"string", StringFilter},
                 {"safe", Identity},
                 {"default", Default},
                 {"d", Default},
                 {"format", Format},
                 {"indent", Indent},
                 {"int", Int},
                 {"float", Float},
                 {"abs", Abs},
                 {"round", Round},
                 {"e", Escape},
                 {"escape", Escape},
                 {"wordcount", WordCount}});
}

}  // namespace switchyard::gateway::jinja
