#include <utility>

#include "gateway/prompt/jinja/renderer.h"
#include "gateway/prompt/jinja/renderer_step.h"
#include "services/base/status.h"

namespace switchyard::gateway::jinja {
namespace {

absl::Status UndefinedError(const Value& value) {
  const auto& why = value.undefined().why;
  return InvalidArgument("{}", why == nullptr ? "a value is undefined" : *why);
}

// "dict object" and the like, as Jinja names them in its messages.
std::string ObjectName(const Value& value) {
  return value.IsNone() ? "None" : fmt::format("'{} object'", value.TypeName());
}

Value Bound(std::string name, int depth,
            std::function<absl::StatusOr<Value>(Renderer&, const Arguments&)> call) {
  auto callable = std::make_shared<Callable>();
  callable->depth = depth;
  callable->name = std::move(name);
  callable->call = std::move(call);
  return Value(std::shared_ptr<const Callable>(std::move(callable)));
}

// loop.changed(…): whether the arguments differ from those of the call before.
Value LoopChanged(const Value& loop) {
  return Bound("changed", 1,
               [loop](Renderer&, const Arguments& arguments) -> absl::StatusOr<Value> {
                 if (loop.ns().loop == nullptr) return Value(false);
                 LoopState& state = *loop.ns().loop;
                 SY_ASSIGN_OR_RETURN(const Value now, MakeList(arguments.positional, true));
                 const bool changed = !state.changed_once || !Equal(state.changed, now);
                 state.changed_once = true;
                 state.changed = now;
                 return Value(changed);
               });
}

absl::StatusOr<Value> LoopAttribute(const Value& loop, const std::string& name) {
  const LoopState& state = *loop.ns().loop;
  const Values& items = state.items.list().items;
  const size_t i = state.index;
  if (name == "index") return Value(i + 1);
  if (name == "index0") return Value(i);
  if (name == "revindex") return Value(items.size() - i);
  if (name == "revindex0") return Value(items.size() - i - 1);
  if (name == "first") return Value(i == 0);
  if (name == "last") return Value(i + 1 == items.size());
  if (name == "length") return Value(items.size());
  if (name == "depth") return Value(1);  // counts recursive loops, which there are none of
  if (name == "depth0") return Value(0);
  if (name == "previtem") return i > 0 ? items[i - 1] : MakeUndefined("there is no previous item");
  if (name == "nextitem") {
    return i + 1 < items.size() ? items[i + 1] : MakeUndefined("there is no next item");
  }
  if (name == "changed") return LoopChanged(loop);
  if (name == "cycle") {
    return Bound("cycle", 1, [i](Renderer&, const Arguments& arguments) -> absl::StatusOr<Value> {
      if (arguments.positional.empty()) return InvalidArgument("no items for cycling given");
      return arguments.positional[i % arguments.positional.size()];
    });
  }
  return MakeUndefined(fmt::format("'loop' has no attribute '{}'", name));
}

}  // namespace

absl::StatusOr<Value> Renderer::Eval(const Expr& expr) {
  Step step(this);
  auto value = step.status().ok() ? EvalOne(expr) : step.status();
  if (!value.ok()) return AtLine(value.status(), expr.line);
  return value;
}

absl::StatusOr<Value> Renderer::EvalOne(const Expr& expr) {
  switch (expr.kind) {
    case ExprKind::kConst:
      return expr.value;
    case ExprKind::kName:
      return EvalName(expr);
    case ExprKind::kList:
    case ExprKind::kTuple:
      return EvalList(expr);
    case ExprKind::kDict:
      return EvalDict(expr);
    case ExprKind::kAttr: {
      SY_ASSIGN_OR_RETURN(const Value on, Eval(*expr.args[0]));
      return Attribute(on, expr.name);
    }
    case ExprKind::kItem: {
      SY_ASSIGN_OR_RETURN(const Value on, Eval(*expr.args[0]));
      SY_ASSIGN_OR_RETURN(const Value key, Eval(*expr.args[1]));
      return Item(on, key);
    }
    case ExprKind::kSlice:
      return EvalSlice(expr);
    case ExprKind::kCall:
      return EvalCall(expr);
    case ExprKind::kFilter:
      return EvalFilter(expr, nullptr);
    case ExprKind::kTest:
      return EvalTest(expr);
    case ExprKind::kNot: {
      SY_ASSIGN_OR_RETURN(const Value value, Eval(*expr.args[0]));
      return Value(!value.Truthy());
    }
    case ExprKind::kNegative:
    case ExprKind::kPositive:
      return EvalSign(expr);
    case ExprKind::kBinary: {
      SY_ASSIGN_OR_RETURN(const Value left, Eval(*expr.args[0]));
      SY_ASSIGN_OR_RETURN(const Value right, Eval(*expr.args[1]));
      if (left.IsUndefined()) return UndefinedError(left);
      if (right.IsUndefined() && !(expr.name == "%" && left.IsString())) {
        return UndefinedError(right);
      }
      return BinaryOperation(*this, expr.name, left, right);
    }
    case ExprKind::kConcat:
      return EvalConcat(expr);
    case ExprKind::kCompare:
      return EvalCompare(expr);
    case ExprKind::kAnd:
    case ExprKind::kOr: {
      SY_ASSIGN_OR_RETURN(Value left, Eval(*expr.args[0]));
      if (left.Truthy() == (expr.kind == ExprKind::kOr)) return left;
      return Eval(*expr.args[1]);
    }
    case ExprKind::kCondition:
      return EvalCondition(expr);
  }
  return Internal("unknown expression");
}

absl::StatusOr<Value> Renderer::EvalName(const Expr& expr) {
  if (const Value* value = FindVariable(expr.name); value != nullptr) return *value;
  return MakeUndefined(fmt::format("'{}' is undefined", expr.name));
}

absl::StatusOr<Value> Renderer::EvalList(const Expr& expr) {
  SY_RETURN_IF_ERROR(Charge(expr.args.size() * sizeof(Value)));
  Values items;
  items.reserve(expr.args.size());
  for (const ExprPtr& arg : expr.args) {
    SY_ASSIGN_OR_RETURN(Value item, Eval(*arg));
    items.push_back(std::move(item));
  }
  return MakeList(std::move(items), expr.kind == ExprKind::kTuple);
}

absl::StatusOr<Value> Renderer::EvalDict(const Expr& expr) {
  SY_RETURN_IF_ERROR(Charge(expr.args.size() * sizeof(Value)));
  Dict dict;
  for (size_t i = 0; i + 1 < expr.args.size(); i += 2) {
    SY_ASSIGN_OR_RETURN(const Value key, Eval(*expr.args[i]));
    SY_ASSIGN_OR_RETURN(Value value, Eval(*expr.args[i + 1]));
    SY_RETURN_IF_ERROR(dict.Set(key, std::move(value)));
  }
  return MakeDict(std::move(dict));
}

absl::StatusOr<Value> Renderer::EvalSlice(const Expr& expr) {
  SY_ASSIGN_OR_RETURN(const Value on, Eval(*expr.args[0]));
  Value bounds[3];
  for (int i = 0; i < 3; ++i) {
    if (expr.args[i + 1] == nullptr) continue;
    SY_ASSIGN_OR_RETURN(bounds[i], Eval(*expr.args[i + 1]));
  }
  return Slice(*this, on, bounds[0], bounds[1], bounds[2]);
}

absl::StatusOr<Arguments> Renderer::EvalArguments(const Expr& expr) {
  Arguments arguments;
  for (size_t i = 1; i < expr.args.size(); ++i) {
    SY_ASSIGN_OR_RETURN(Value value, Eval(*expr.args[i]));
    arguments.positional.push_back(std::move(value));
  }
  for (const auto& [name, arg] : expr.named) {
    SY_ASSIGN_OR_RETURN(Value value, Eval(*arg));
    arguments.named.emplace_back(name, std::move(value));
  }
  if (expr.star != nullptr) {
    SY_ASSIGN_OR_RETURN(const Value list, Eval(*expr.star));
    SY_ASSIGN_OR_RETURN(const Values items, Items(list));
    arguments.positional.insert(arguments.positional.end(), items.begin(), items.end());
  }
  if (expr.star_star != nullptr) {
    SY_ASSIGN_OR_RETURN(const Value dict, Eval(*expr.star_star));
    if (!dict.IsDict()) return InvalidArgument("argument after ** must be a mapping");
    for (const auto& [key, value] : dict.dict().items) {
      if (!key.IsString()) return InvalidArgument("keywords must be strings");
      arguments.named.emplace_back(key.str(), value);
    }
  }
  return arguments;
}

absl::StatusOr<Value> Renderer::EvalCall(const Expr& expr) {
  const Expr& callee = *expr.args[0];
  if (callee.kind == ExprKind::kAttr) {  // a method needs no value of its own
    SY_ASSIGN_OR_RETURN(const Value on, Eval(*callee.args[0]));
    if (HasMethod(on, callee.name)) {
      SY_ASSIGN_OR_RETURN(const Arguments arguments, EvalArguments(expr));
      return CallMethod(*this, on, callee.name, arguments);
    }
    SY_ASSIGN_OR_RETURN(const Value function, Attribute(on, callee.name));
    SY_ASSIGN_OR_RETURN(const Arguments arguments, EvalArguments(expr));
    return Call(function, arguments);
  }
  SY_ASSIGN_OR_RETURN(const Value function, Eval(callee));
  SY_ASSIGN_OR_RETURN(const Arguments arguments, EvalArguments(expr));
  return Call(function, arguments);
}

absl::StatusOr<Value> Renderer::Call(const Value& function, const Arguments& arguments) {
  if (function.IsUndefined()) return UndefinedError(function);
  if (!function.IsCallable()) {
    return InvalidArgument("'{}' object is not callable", function.TypeName());
  }
  return function.callable().call(*this, arguments);
}

absl::StatusOr<Value> Renderer::EvalFilter(const Expr& expr, const Value* innermost) {
  Value on;
  if (expr.args[0] == nullptr) {
    on = *innermost;
  } else if (innermost != nullptr) {
    SY_ASSIGN_OR_RETURN(on, EvalFilter(*expr.args[0], innermost));
  } else {
    SY_ASSIGN_OR_RETURN(on, Eval(*expr.args[0]));
  }
  SY_ASSIGN_OR_RETURN(const Arguments arguments, EvalArguments(expr));
  return Filter(expr.name, on, arguments);
}

absl::StatusOr<Value> Renderer::EvalTest(const Expr& expr) {
  SY_ASSIGN_OR_RETURN(const Value on, Eval(*expr.args[0]));
  SY_ASSIGN_OR_RETURN(const Arguments arguments, EvalArguments(expr));
  SY_ASSIGN_OR_RETURN(const bool result, Test(expr.name, on, arguments));
  return Value(result);
}

absl::StatusOr<Value> Renderer::EvalSign(const Expr& expr) {
  SY_ASSIGN_OR_RETURN(const Value value, Eval(*expr.args[0]));
  if (value.IsUndefined()) return UndefinedError(value);
  if (!value.IsNumber()) return InvalidArgument("bad operand type: '{}'", value.TypeName());
  if (expr.kind == ExprKind::kPositive) {
    return value.IsBool() ? Value(value.integer()) : value;
  }
  if (value.IsFloat()) return Value(-value.number());
  return BinaryOperation(*this, "-", Value(0), value);
}

absl::StatusOr<Value> Renderer::EvalConcat(const Expr& expr) {
  std::string text;
  for (const ExprPtr& arg : expr.args) {
    SY_ASSIGN_OR_RETURN(const Value value, Eval(*arg));
    SY_ASSIGN_OR_RETURN(const std::string part, ToText(value));
    SY_RETURN_IF_ERROR(Charge(part.size()));
    text += part;
  }
  return Text(std::move(text));
}

absl::StatusOr<Value> Renderer::EvalCompare(const Expr& expr) {
  SY_ASSIGN_OR_RETURN(Value left, Eval(*expr.args[0]));
  for (size_t i = 0; i < expr.operators.size(); ++i) {
    SY_ASSIGN_OR_RETURN(Value right, Eval(*expr.args[i + 1]));
    const std::string& op = expr.operators[i];
    SY_RETURN_IF_ERROR(Charge(SizeOf(left) + SizeOf(right)));
    bool holds = false;
    if (op == "==" || op == "!=") {
      holds = Equal(left, right) == (op == "==");
    } else if (op == "in" || op == "not in") {
      SY_ASSIGN_OR_RETURN(const bool contained, Contains(right, left));
      holds = contained == (op == "in");
    } else {
      if (left.IsUndefined()) return UndefinedError(left);
      if (right.IsUndefined()) return UndefinedError(right);
      SY_ASSIGN_OR_RETURN(const int order, Compare(left, right));
      holds = op == "<" ? order < 0 : op == "<=" ? order <= 0 : op == ">" ? order > 0 : order >= 0;
    }
    if (!holds) return Value(false);
    left = std::move(right);
  }
  return Value(true);
}

absl::StatusOr<Value> Renderer::EvalCondition(const Expr& expr) {
  SY_ASSIGN_OR_RETURN(const Value condition, Eval(*expr.args[0]));
  if (condition.Truthy()) return Eval(*expr.args[1]);
  if (expr.args[2] != nullptr) return Eval(*expr.args[2]);
  return MakeUndefined("the inline if-expression evaluated to false and no else was given");
}

absl::StatusOr<Values> Renderer::Items(const Value& value) {
  Values items;
  if (value.IsList()) {
    items = value.list().items;
  } else if (value.IsString()) {
    SY_RETURN_IF_ERROR(Charge(value.str().size() * sizeof(Value)));
    for (std::string_view c : Characters(value.str())) items.emplace_back(c);
  } else if (value.IsDict()) {
    for (const auto& [key, item] : value.dict().items) items.push_back(key);
  } else if (!value.IsUndefined()) {
    return InvalidArgument("'{}' object is not iterable", value.TypeName());
  }
  SY_RETURN_IF_ERROR(Charge(items.size() * sizeof(Value)));
  return items;
}

absl::StatusOr<Value> Renderer::Attribute(const Value& on, const std::string& name) {
  if (on.IsUndefined()) return UndefinedError(on);
  if (HasMethod(on, name)) {
    if (DepthOf(on) >= kValueDepthMax) {
      return InvalidArgument("a value is nested deeper than {}", kValueDepthMax);
    }
    return Bound(name, 1 + DepthOf(on), [on, name](Renderer& renderer, const Arguments& arguments) {
      return CallMethod(renderer, on, name, arguments);
    });
  }
  const Value* found = nullptr;
  if (on.IsDict()) found = on.dict().FindText(name);
  if (on.IsNamespace()) {
    if (on.ns().loop != nullptr) return LoopAttribute(on, name);
    found = on.ns().attributes.FindText(name);
  }
  if (found != nullptr) return *found;
  return MakeUndefined(fmt::format("{} has no attribute '{}'", ObjectName(on), name));
}

absl::StatusOr<Value> Renderer::Item(const Value& on, const Value& key) {
  if (on.IsUndefined()) return UndefinedError(on);
  SY_RETURN_IF_ERROR(Charge(SizeOf(key)));
  if (on.IsDict()) {
    if (const Value* found = on.dict().Find(key); found != nullptr) return *found;
  } else if ((on.IsList() || on.IsString()) && (key.IsInt() || key.IsBool())) {
    int64_t at = key.integer();
    const int64_t size =
        on.IsList() ? static_cast<int64_t>(on.list().items.size()) : CharacterCount(on.str());
    if (at < 0) at += size;
    if (at < 0 || at >= size) {
      return MakeUndefined(fmt::format("{} has no element {}", ObjectName(on), key.integer()));
    }
    if (on.IsList()) return on.list().items[at];
    SY_RETURN_IF_ERROR(Charge(on.str().size()));
    if (size == static_cast<int64_t>(on.str().size())) return Value(on.str().substr(at, 1));
    return Value(Characters(on.str())[at]);
  }
  if (key.IsString()) return Attribute(on, key.str());
  SY_ASSIGN_OR_RETURN(const std::string shown, ToRepr(key, 100));
  return MakeUndefined(fmt::format("{} has no element {}", ObjectName(on), shown));
}

}  // namespace switchyard::gateway::jinja
