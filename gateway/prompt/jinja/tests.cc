// What stands behind `is`.
#include <map>
#include <string>

#include "gateway/prompt/jinja/arguments.h"
#include "gateway/prompt/jinja/parser.h"
#include "gateway/prompt/jinja/renderer.h"
#include "gateway/prompt/jinja/text_functions.h"
#include "services/base/status.h"

namespace switchyard::gateway::jinja {
namespace {

using Result = absl::StatusOr<bool>;
using TestFunction = Result (*)(const Value& on, const Arguments& arguments);

template <bool (*holds)(const Value&)>
Result Plain(const Value& on, const Arguments& arguments) {
  SY_RETURN_IF_ERROR(BoundArguments::Bind("this test", arguments, {}).status());
  return holds(on);
}

bool IsDefined(const Value& v) { return !v.IsUndefined(); }
bool IsUndefinedValue(const Value& v) { return v.IsUndefined(); }
bool IsNoneValue(const Value& v) { return v.IsNone(); }
bool IsStringValue(const Value& v) { return v.IsString(); }
bool IsNumberValue(const Value& v) { return v.IsNumber(); }
bool IsIntegerValue(const Value& v) { return v.IsInt(); }
bool IsFloatValue(const Value& v) { return v.IsFloat(); }
bool IsBooleanValue(const Value& v) { return v.IsBool(); }
bool IsTrue(const Value& v) { return v.IsBool() && v.boolean(); }
bool IsFalse(const Value& v) { return v.IsBool() && !v.boolean(); }
bool IsMapping(const Value& v) { return v.IsDict(); }
bool IsIterable(const Value& v) {
  return v.IsString() || v.IsList() || v.IsDict() || v.IsUndefined();
}
// An Undefined can be called, if only to fail.
bool IsCallableValue(const Value& v) { return v.IsCallable() || v.IsUndefined(); }
bool IsLower(const Value& v) {
  return v.IsString() && Lower(v.str()) == v.str() && Upper(v.str()) != v.str();
}
bool IsUpper(const Value& v) {
  return v.IsString() && Upper(v.str()) == v.str() && Lower(v.str()) != v.str();
}

absl::StatusOr<int64_t> WholeOf(const Value& value) {
  if (value.IsInt() || value.IsBool()) return value.integer();
  return InvalidArgument("an integer expected, not {}", value.TypeName());
}

template <int64_t rest>
Result Parity(const Value& on, const Arguments&) {
  SY_ASSIGN_OR_RETURN(const int64_t number, WholeOf(on));
  return (number % 2 != 0) == (rest != 0);
}

Result DivisibleBy(const Value& on, const Arguments& arguments) {
  SY_ASSIGN_OR_RETURN(const auto a, BoundArguments::Bind("divisibleby", arguments, {"num"}, 1));
  SY_ASSIGN_OR_RETURN(const int64_t number, WholeOf(on));
  SY_ASSIGN_OR_RETURN(const int64_t by, WholeOf(*a.Get(0)));
  if (by == 0) return InvalidArgument("division by zero");
  return by == -1 || number % by == 0;
}

Result IsIn(const Value& on, const Arguments& arguments) {
  SY_ASSIGN_OR_RETURN(const auto a, BoundArguments::Bind("in", arguments, {"seq"}, 1));
  return Contains(*a.Get(0), on);
}

Result IsEqual(const Value& on, const Arguments& arguments) {
  SY_ASSIGN_OR_RETURN(const auto a, BoundArguments::Bind("eq", arguments, {"other"}, 1));
  return Equal(on, *a.Get(0));
}

Result IsNotEqual(const Value& on, const Arguments& arguments) {
  SY_ASSIGN_OR_RETURN(const bool equal, IsEqual(on, arguments));
  return !equal;
}

// order: the signs of the comparison for which it holds.
template <bool less, bool equal, bool greater>
Result Order(const Value& on, const Arguments& arguments) {
  SY_ASSIGN_OR_RETURN(const auto a, BoundArguments::Bind("compare", arguments, {"other"}, 1));
  SY_ASSIGN_OR_RETURN(const int order, Compare(on, *a.Get(0)));
  return order < 0 ? less : order > 0 ? greater : equal;
}

Result SameAs(const Value& on, const Arguments& arguments) {
  SY_ASSIGN_OR_RETURN(const auto a, BoundArguments::Bind("sameas", arguments, {"other"}, 1));
  const Value& other = *a.Get(0);
  return on.TypeName() == other.TypeName() && Equal(on, other);
}

const std::map<std::string, TestFunction, std::less<>>& Tests() {
  static const auto& tests = *new std::map<std::string, TestFunction, std::less<>>{
      {"defined", Plain<IsDefined>},
      {"undefined", Plain<IsUndefinedValue>},
      {"none", Plain<IsNoneValue>},
      {"string", Plain<IsStringValue>},
      {"number", Plain<IsNumberValue>},
      {"integer", Plain<IsIntegerValue>},
      {"float", Plain<IsFloatValue>},
      {"boolean", Plain<IsBooleanValue>},
      {"true", Plain<IsTrue>},
      {"false", Plain<IsFalse>},
      {"mapping", Plain<IsMapping>},
      {"iterable", Plain<IsIterable>},
      {"sequence", Plain<IsIterable>},
      {"callable", Plain<IsCallableValue>},
      {"lower", Plain<IsLower>},
      {"upper", Plain<IsUpper>},
      {"odd", Parity<1>},
      {"even", Parity<0>},
      {"divisibleby", DivisibleBy},
      {"in", IsIn},
      {"sameas", SameAs},
      {"eq", IsEqual},
      {"equalto", IsEqual},
      {"ne", IsNotEqual},
      {"lt", Order<true, false, false>},
      {"lessthan", Order<true, false, false>},
      {"le", Order<true, true, false>},
      {"gt", Order<false, false, true>},
      {"greaterthan", Order<false, false, true>},
      {"ge", Order<false, true, true>}};
  return tests;
}

}  // namespace

bool IsTest(std::string_view name) { return Tests().find(name) != Tests().end(); }

absl::StatusOr<bool> Renderer::Test(const std::string& name, const Value& on,
                                    const Arguments& arguments) {
  const auto found = Tests().find(name);
  if (found == Tests().end()) return InvalidArgument("no test named '{}'", name);
  uint64_t size = SizeOf(on);
  for (const Value& argument : arguments.positional) size += SizeOf(argument);
  SY_RETURN_IF_ERROR(Charge(size));
  return found->second(on, arguments);
}

}  // namespace switchyard::gateway::jinja
