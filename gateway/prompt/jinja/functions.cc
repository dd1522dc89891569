#include <ctime>

#include "gateway/prompt/jinja/arguments.h"
#include "gateway/prompt/jinja/renderer.h"
#include "services/base/status.h"

namespace switchyard::gateway::jinja {
namespace {

using Result = absl::StatusOr<Value>;

constexpr int64_t kRangeMax = 100'000;  // as Jinja's sandbox has it

Result RaiseException(Renderer& renderer, const Arguments& arguments) {
  SY_ASSIGN_OR_RETURN(const auto a,
                      BoundArguments::Bind("raise_exception", arguments, {"message"}, 1));
  SY_ASSIGN_OR_RETURN(const std::string message, renderer.ToText(*a.Get(0)));
  return renderer.Raise(message);
}

Result StrftimeNow(Renderer& renderer, const Arguments& arguments) {
  SY_ASSIGN_OR_RETURN(const auto a, BoundArguments::Bind("strftime_now", arguments, {"format"}, 1));
  SY_ASSIGN_OR_RETURN(const std::string format, a.Text(0, ""));
  const std::time_t now = renderer.Now();
  std::tm local{};
  localtime_r(&now, &local);
  char text[1024];
  // A space in front tells an empty result from one that does not fit.
  const size_t size = std::strftime(text, sizeof(text), (" " + format).c_str(), &local);
  if (size == 0) return InvalidArgument("strftime_now: the result is too long");
  return renderer.Text(std::string(text + 1, size - 1));
}

Result Range(Renderer& renderer, const Arguments& arguments) {
  SY_ASSIGN_OR_RETURN(const auto a,
                      BoundArguments::Bind("range", arguments, {"start", "stop", "step"}, 1));
  SY_ASSIGN_OR_RETURN(int64_t start, a.Int(0, 0));
  SY_ASSIGN_OR_RETURN(int64_t stop, a.Int(1, 0));
  SY_ASSIGN_OR_RETURN(const int64_t step, a.Int(2, 1));
  if (a.Get(1) == nullptr) {
    stop = start;
    start = 0;
  }
  if (step == 0) return InvalidArgument("range: the step must not be zero");
  Values items;
  for (int64_t i = start; step > 0 ? i < stop : i > stop;) {
    if (static_cast<int64_t>(items.size()) == kRangeMax) {
      return InvalidArgument("range: more than {} items", kRangeMax);
    }
    items.emplace_back(i);
    if (__builtin_add_overflow(i, step, &i)) break;
  }
  SY_RETURN_IF_ERROR(renderer.Charge(items.size() * sizeof(Value)));
  return MakeList(std::move(items));
}

// The items of dict(…) and namespace(…): a dict or pairs, then keywords.
absl::StatusOr<Dict> DictFrom(Renderer& renderer, const Arguments& arguments) {
  Dict dict;
  if (arguments.positional.size() > 1)
    return InvalidArgument("dict: at most one argument expected");
  if (!arguments.positional.empty()) {
    const Value& from = arguments.positional[0];
    if (from.IsDict()) {
      dict = from.dict();
    } else {
      SY_ASSIGN_OR_RETURN(const Values pairs, renderer.Items(from));
      for (const Value& pair : pairs) {
        SY_ASSIGN_OR_RETURN(const Values two, renderer.Items(pair));
        if (two.size() != 2) return InvalidArgument("dict: pairs expected");
        SY_RETURN_IF_ERROR(dict.Set(two[0], two[1]));
      }
    }
  }
  for (const auto& [name, value] : arguments.named) SY_RETURN_IF_ERROR(dict.Set(name, value));
  SY_RETURN_IF_ERROR(renderer.Charge(dict.items.size() * 2 * sizeof(Value)));
  return dict;
}

Result MakeDictFunction(Renderer& renderer, const Arguments& arguments) {
  SY_ASSIGN_OR_RETURN(Dict dict, DictFrom(renderer, arguments));
  return MakeDict(std::move(dict));
}

Result MakeNamespaceFunction(Renderer& renderer, const Arguments& arguments) {
  SY_ASSIGN_OR_RETURN(Dict dict, DictFrom(renderer, arguments));
  return renderer.MakeNamespace(std::move(dict));
}

}  // namespace

void SetStandardFunctions(Renderer& renderer) {
  const auto set = [&](const char* name, Result (*call)(Renderer&, const Arguments&)) {
    auto callable = std::make_shared<Callable>();
    callable->name = name;
    callable->call = call;
    renderer.SetGlobal(name, Value(std::shared_ptr<const Callable>(std::move(callable))));
  };
  set("raise_exception", RaiseException);
  set("strftime_now", StrftimeNow);
  set("range", Range);
  set("dict", MakeDictFunction);
  set("namespace", MakeNamespaceFunction);
}

}  // namespace switchyard::gateway::jinja
