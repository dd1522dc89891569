// The methods of texts, lists and dicts. Those that would change a list or dict are missing on
// purpose: the sandbox of chat templates refuses them.
#include <unicode/uchar.h>

#include <algorithm>
#include <map>
#include <string>

#include "gateway/prompt/jinja/arguments.h"
#include "gateway/prompt/jinja/renderer.h"
#include "gateway/prompt/jinja/text_functions.h"
#include "services/base/status.h"
#include "services/base/utf8.h"

namespace switchyard::gateway::jinja {
namespace {

using Result = absl::StatusOr<Value>;
using Method = Result (*)(Renderer&, const Value& on, const Arguments& arguments);
using Methods = std::map<std::string, Method, std::less<>>;

Result Texts(Renderer& renderer, const std::vector<std::string_view>& parts, bool tuple = false) {
  Values items;
  for (std::string_view part : parts) {
    SY_RETURN_IF_ERROR(renderer.Charge(part.size() + sizeof(Value)));
    items.emplace_back(part);
  }
  return MakeList(std::move(items), tuple);
}

template <Side side>
Result StripMethod(Renderer& renderer, const Value& on, const Arguments& arguments) {
  SY_ASSIGN_OR_RETURN(const auto a, BoundArguments::Bind("strip", arguments, {"chars"}));
  if (a.GetNotNone(0) == nullptr) return renderer.Text(std::string(Strip(on.str(), side)));
  SY_ASSIGN_OR_RETURN(const std::string set, a.Text(0, ""));
  return renderer.Text(std::string(Strip(on.str(), side, set)));
}

template <bool from_right>
Result SplitMethod(Renderer& renderer, const Value& on, const Arguments& arguments) {
  SY_ASSIGN_OR_RETURN(const auto a, BoundArguments::Bind("split", arguments, {"sep", "maxsplit"}));
  SY_ASSIGN_OR_RETURN(const int64_t count, a.Int(1, -1));
  if (a.GetNotNone(0) == nullptr) return Texts(renderer, SplitWords(on.str(), count, from_right));
  SY_ASSIGN_OR_RETURN(const std::string separator, a.Text(0, ""));
  if (separator.empty()) return InvalidArgument("split: empty separator");
  return Texts(renderer, Split(on.str(), separator, count, from_right));
}

template <bool at_end>
Result AffixMethod(Renderer&, const Value& on, const Arguments& arguments) {
  SY_ASSIGN_OR_RETURN(const auto a, BoundArguments::Bind("startswith", arguments, {"affix"}, 1));
  const std::string& text = on.str();
  const auto fits = [&](const Value& affix) {
    const std::string& part = affix.str();
    return part.size() <= text.size() &&
           text.compare(at_end ? text.size() - part.size() : 0, part.size(), part) == 0;
  };
  const Value& affix = *a.Get(0);
  if (affix.IsString()) return Value(fits(affix));
  if (!affix.IsList() || !affix.list().tuple) {
    return InvalidArgument("startswith/endswith: a string or a tuple of them expected, not {}",
                           affix.TypeName());
  }
  for (const Value& one : affix.list().items) {
    if (!one.IsString()) return InvalidArgument("startswith/endswith: a tuple of strings expected");
    if (fits(one)) return Value(true);
  }
  return Value(false);
}

template <std::string (*map)(std::string_view)>
Result MapMethod(Renderer& renderer, const Value& on, const Arguments& arguments) {
  SY_RETURN_IF_ERROR(BoundArguments::Bind("this method", arguments, {}).status());
  SY_RETURN_IF_ERROR(renderer.Charge(on.str().size() * 2));
  return renderer.Text(map(on.str()));
}

Result ReplaceMethod(Renderer& renderer, const Value& on, const Arguments& arguments) {
  SY_ASSIGN_OR_RETURN(const auto a,
                      BoundArguments::Bind("replace", arguments, {"old", "new", "count"}, 2));
  SY_ASSIGN_OR_RETURN(const std::string from, a.Text(0, ""));
  SY_ASSIGN_OR_RETURN(const std::string to, a.Text(1, ""));
  SY_ASSIGN_OR_RETURN(const int64_t count, a.Int(2, -1));
  // No more places than bytes, so this bounds the result before it is made.
  const uint64_t places = on.str().size() / std::max<size_t>(from.size(), 1) + 1;
  if (places * to.size() > renderer.limits().work_bytes_max) {
    return ResourceExhausted("replace: the result is too long");
  }
  return renderer.Text(Replace(on.str(), from, to, count));
}

template <bool from_right, bool must_be_there>
Result FindMethod(Renderer&, const Value& on, const Arguments& arguments) {
  SY_ASSIGN_OR_RETURN(const auto a, BoundArguments::Bind("find", arguments, {"sub"}, 1));
  SY_ASSIGN_OR_RETURN(const std::string part, a.Text(0, ""));
  const size_t at = from_right ? on.str().rfind(part) : FindPart(on.str(), part);
  if (at != std::string::npos) {
    return Value(CharacterCount(std::string_view(on.str()).substr(0, at)));
  }
  if (must_be_there) return InvalidArgument("substring not found");
  return Value(-1);
}

Result CountMethod(Renderer&, const Value& on, const Arguments& arguments) {
  SY_ASSIGN_OR_RETURN(const auto a, BoundArguments::Bind("count", arguments, {"sub"}, 1));
  SY_ASSIGN_OR_RETURN(const std::string part, a.Text(0, ""));
  if (part.empty()) return Value(CharacterCount(on.str()) + 1);
  return Value(Split(on.str(), part, -1, false).size() - 1);
}

Result JoinMethod(Renderer& renderer, const Value& on, const Arguments& arguments) {
  SY_ASSIGN_OR_RETURN(const auto a, BoundArguments::Bind("join", arguments, {"iterable"}, 1));
  SY_ASSIGN_OR_RETURN(const Values items, renderer.Items(*a.Get(0)));
  std::string text;
  for (size_t i = 0; i < items.size(); ++i) {
    if (!items[i].IsString()) {
      return InvalidArgument("join: item {} is {}, not str", i, items[i].TypeName());
    }
    if (i > 0) text += on.str();
    text += items[i].str();
    SY_RETURN_IF_ERROR(renderer.Charge(on.str().size() + items[i].str().size()));
  }
  return renderer.Text(std::move(text));
}

Result FormatMethod(Renderer& renderer, const Value& on, const Arguments& arguments) {
  return BraceFormat(renderer, on.str(), arguments);
}

Result SplitLinesMethod(Renderer& renderer, const Value& on, const Arguments& arguments) {
  SY_ASSIGN_OR_RETURN(const auto a, BoundArguments::Bind("splitlines", arguments, {"keepends"}));
  return Texts(renderer, SplitLines(on.str(), a.Bool(0, false)));
}

template <bool from_right>
Result PartitionMethod(Renderer& renderer, const Value& on, const Arguments& arguments) {
  SY_ASSIGN_OR_RETURN(const auto a, BoundArguments::Bind("partition", arguments, {"sep"}, 1));
  SY_ASSIGN_OR_RETURN(const std::string separator, a.Text(0, ""));
  if (separator.empty()) return InvalidArgument("partition: empty separator");
  const std::string_view text = on.str();
  const size_t at = from_right ? text.rfind(separator) : text.find(separator);
  if (at == std::string_view::npos) {
    return from_right ? Texts(renderer, {"", "", text}, true)
                      : Texts(renderer, {text, "", ""}, true);
  }
  return Texts(renderer, {text.substr(0, at), separator, text.substr(at + separator.size())}, true);
}

template <bool at_end>
Result RemoveAffixMethod(Renderer& renderer, const Value& on, const Arguments& arguments) {
  SY_ASSIGN_OR_RETURN(const auto a, BoundArguments::Bind("removeprefix", arguments, {"affix"}, 1));
  SY_ASSIGN_OR_RETURN(const std::string affix, a.Text(0, ""));
  std::string_view text = on.str();
  if (at_end && text.size() >= affix.size() && text.substr(text.size() - affix.size()) == affix) {
    text.remove_suffix(affix.size());
  } else if (!at_end && text.substr(0, affix.size()) == affix) {
    text.remove_prefix(affix.size());
  }
  return renderer.Text(std::string(text));
}

template <bool (*is)(UChar32)>
Result AllMethod(Renderer&, const Value& on, const Arguments& arguments) {
  SY_RETURN_IF_ERROR(BoundArguments::Bind("this method", arguments, {}).status());
  const auto characters = Characters(on.str());
  return Value(!characters.empty() && std::all_of(characters.begin(), characters.end(), [](auto c) {
    return is(static_cast<UChar32>(FirstUtf8(c).code));
  }));
}

bool IsAlpha(UChar32 c) { return (U_GET_GC_MASK(c) & U_GC_L_MASK) != 0; }
bool IsDecimal(UChar32 c) { return (U_GET_GC_MASK(c) & U_GC_ND_MASK) != 0; }
bool IsDigitValue(UChar32 c) {
  const int32_t type = u_getIntPropertyValue(c, UCHAR_NUMERIC_TYPE);
  return type == U_NT_DECIMAL || type == U_NT_DIGIT;
}
bool IsNumeric(UChar32 c) { return u_getIntPropertyValue(c, UCHAR_NUMERIC_TYPE) != U_NT_NONE; }
bool IsAlnum(UChar32 c) { return IsAlpha(c) || IsNumeric(c); }
bool IsSpace(UChar32 c) { return IsPythonSpace(static_cast<char32_t>(c)); }

// isupper and islower: some cased character, and none of the other case.
template <bool upper>
Result CaseMethod(Renderer&, const Value& on, const Arguments& arguments) {
  SY_RETURN_IF_ERROR(BoundArguments::Bind("this method", arguments, {}).status());
  bool some = false;
  for (std::string_view c : Characters(on.str())) {
    const auto code = static_cast<UChar32>(FirstUtf8(c).code);
    const bool is_upper = u_hasBinaryProperty(code, UCHAR_UPPERCASE);
    const bool is_lower = u_hasBinaryProperty(code, UCHAR_LOWERCASE);
    if (upper ? is_lower : is_upper) return Value(false);
    if (u_charType(code) == U_TITLECASE_LETTER) return Value(false);
    some |= upper ? is_upper : is_lower;
  }
  return Value(some);
}

const Methods& TextMethods() {
  static const auto& methods = *new Methods{{"strip", StripMethod<Side::kBoth>},
                                            {"lstrip", StripMethod<Side::kLeft>},
                                            {"rstrip", StripMethod<Side::kRight>},
                                            {"split", SplitMethod<false>},
                                            {"rsplit", SplitMethod<true>},
                                            {"startswith", AffixMethod<false>},
                                            {"endswith", AffixMethod<true>},
                                            {"upper", MapMethod<Upper>},
                                            {"lower", MapMethod<Lower>},
                                            {"title", MapMethod<TitleMethod>},
                                            {"capitalize", MapMethod<Capitalize>},
                                            {"replace", ReplaceMethod},
                                            {"find", FindMethod<false, false>},
                                            {"rfind", FindMethod<true, false>},
                                            {"index", FindMethod<false, true>},
                                            {"rindex", FindMethod<true, true>},
                                            {"count", CountMethod},
                                            {"join", JoinMethod},
                                            {"format", FormatMethod},
                                            {"splitlines", SplitLinesMethod},
                                            {"partition", PartitionMethod<false>},
                                            {"rpartition", PartitionMethod<true>},
                                            {"removeprefix", RemoveAffixMethod<false>},
                                            {"removesuffix", RemoveAffixMethod<true>},
                                            {"isalpha", AllMethod<IsAlpha>},
                                            {"isdigit", AllMethod<IsDigitValue>},
                                            {"isdecimal", AllMethod<IsDecimal>},
                                            {"isnumeric", AllMethod<IsNumeric>},
                                            {"isalnum", AllMethod<IsAlnum>},
                                            {"isspace", AllMethod<IsSpace>},
                                            {"isupper", CaseMethod<true>},
                                            {"islower", CaseMethod<false>}};
  return methods;
}

Result ListIndex(Renderer&, const Value& on, const Arguments& arguments) {
  SY_ASSIGN_OR_RETURN(const auto a, BoundArguments::Bind("index", arguments, {"value"}, 1));
  const Values& items = on.list().items;
  const auto found = std::find_if(items.begin(), items.end(),
                                  [&](const Value& item) { return Equal(item, *a.Get(0)); });
  if (found == items.end()) return InvalidArgument("index: the value is not in the list");
  return Value(static_cast<int64_t>(found - items.begin()));
}

Result ListCount(Renderer&, const Value& on, const Arguments& arguments) {
  SY_ASSIGN_OR_RETURN(const auto a, BoundArguments::Bind("count", arguments, {"value"}, 1));
  const Values& items = on.list().items;
  return Value(static_cast<int64_t>(std::count_if(
      items.begin(), items.end(), [&](const Value& item) { return Equal(item, *a.Get(0)); })));
}

Result Copy(Renderer&, const Value& on, const Arguments& arguments) {
  SY_RETURN_IF_ERROR(BoundArguments::Bind("copy", arguments, {}).status());
  return on;
}

enum class Part { kKeys, kValues, kItems };

template <Part part>
Result DictParts(Renderer& renderer, const Value& on, const Arguments& arguments) {
  SY_RETURN_IF_ERROR(BoundArguments::Bind("this method", arguments, {}).status());
  SY_RETURN_IF_ERROR(renderer.Charge(on.dict().items.size() * 4 * sizeof(Value)));
  Values items;
  for (const auto& [key, value] : on.dict().items) {
    if (part == Part::kItems) {
      SY_ASSIGN_OR_RETURN(Value pair, MakeList({key, value}, true));
      items.push_back(std::move(pair));
    } else {
      items.push_back(part == Part::kKeys ? key : value);
    }
  }
  return MakeList(std::move(items));
}

Result DictGet(Renderer&, const Value& on, const Arguments& arguments) {
  SY_ASSIGN_OR_RETURN(const auto a, BoundArguments::Bind("get", arguments, {"key", "default"}, 1));
  const Value* found = on.dict().Find(*a.Get(0));
  if (found != nullptr) return *found;
  return a.Get(1) == nullptr ? Value() : *a.Get(1);
}

Result Refused(Renderer&, const Value& on, const Arguments&) {
  return InvalidArgument("a {} cannot be changed by a chat template", on.TypeName());
}

const Methods& ListMethods() {
  static const auto& methods = *new Methods{
      {"index", ListIndex}, {"count", ListCount}, {"copy", Copy},    {"append", Refused},
      {"extend", Refused},  {"insert", Refused},  {"pop", Refused},  {"remove", Refused},
      {"reverse", Refused}, {"sort", Refused},    {"clear", Refused}};
  return methods;
}

const Methods& DictMethods() {
  static const auto& methods = *new Methods{{"keys", DictParts<Part::kKeys>},
                                            {"values", DictParts<Part::kValues>},
                                            {"items", DictParts<Part::kItems>},
                                            {"get", DictGet},
                                            {"copy", Copy},
                                            {"update", Refused},
                                            {"setdefault", Refused},
                                            {"pop", Refused},
                                            {"popitem", Refused},
                                            {"clear", Refused}};
  return methods;
}

Method FindMethodOf(const Value& on, std::string_view name) {
  if (!on.IsString() && !on.IsList() && !on.IsDict()) return nullptr;
  const Methods& methods = on.IsString() ? TextMethods()
                           : on.IsList() ? ListMethods()
                                         : DictMethods();
  const auto found = methods.find(name);
  return found == methods.end() ? nullptr : found->second;
}

}  // namespace

bool HasMethod(const Value& on, std::string_view name) { return FindMethodOf(on, name) != nullptr; }

absl::StatusOr<Value> CallMethod(Renderer& renderer, const Value& on, const std::string& name,
                                 const Arguments& arguments) {
  uint64_t size = SizeOf(on);
  for (const Value& argument : arguments.positional) size += SizeOf(argument);
  SY_RETURN_IF_ERROR(renderer.Charge(size));
  return FindMethodOf(on, name)(renderer, on, arguments);
}

}  // namespace switchyard::gateway::jinja
