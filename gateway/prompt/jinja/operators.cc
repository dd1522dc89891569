#include <algorithm>
#include <cmath>

#include "gateway/prompt/jinja/renderer.h"
#include "gateway/prompt/jinja/text_functions.h"
#include "services/base/status.h"

namespace switchyard::gateway::jinja {
namespace {

absl::Status BadOperands(const std::string& op, const Value& left, const Value& right) {
  return InvalidArgument("unsupported operand type(s) for {}: '{}' and '{}'", op, left.TypeName(),
                         right.TypeName());
}

absl::Status TooLarge() { return InvalidArgument("a number is out of range"); }

int64_t FloorDiv(int64_t a, int64_t b) {
  const int64_t quotient = a / b;
  return a % b != 0 && (a < 0) != (b < 0) ? quotient - 1 : quotient;
}

absl::StatusOr<Value> IntPower(int64_t base, int64_t exponent) {
  if (exponent < 0) {
    if (base == 0) return InvalidArgument("0.0 cannot be raised to a negative power");
    return Value(std::pow(static_cast<double>(base), static_cast<double>(exponent)));
  }
  int64_t result = 1;
  while (exponent > 0) {
    if ((exponent & 1) != 0 && __builtin_mul_overflow(result, base, &result)) return TooLarge();
    exponent >>= 1;
    if (exponent > 0 && __builtin_mul_overflow(base, base, &base)) return TooLarge();
  }
  return Value(result);
}

absl::StatusOr<Value> IntOperation(const std::string& op, int64_t a, int64_t b) {
  int64_t result = 0;
  if (op == "**") return IntPower(a, b);
  if (op == "+") {
    if (__builtin_add_overflow(a, b, &result)) return TooLarge();
    return Value(result);
  }
  if (op == "-") {
    if (__builtin_sub_overflow(a, b, &result)) return TooLarge();
    return Value(result);
  }
  if (op == "*") {
    if (__builtin_mul_overflow(a, b, &result)) return TooLarge();
    return Value(result);
  }
  if (b == 0) return InvalidArgument("division by zero");
  if (op == "/") return Value(static_cast<double>(a) / static_cast<double>(b));
  if (b == -1) {  // INT64_MIN / -1
    if (op == "%") return Value(0);
    if (__builtin_sub_overflow(int64_t{0}, a, &result)) return TooLarge();
    return Value(result);
  }
  if (op == "//") return Value(FloorDiv(a, b));
  return Value(a - FloorDiv(a, b) * b);
}

absl::StatusOr<Value> FloatOperation(const std::string& op, double a, double b) {
  if (op == "+") return Value(a + b);
  if (op == "-") return Value(a - b);
  if (op == "*") return Value(a * b);
  if (op == "**") return Value(std::pow(a, b));
  if (b == 0) return InvalidArgument("float division by zero");
  if (op == "/") return Value(a / b);
  if (op == "//") return Value(std::floor(a / b));
  const double rest = std::fmod(a, b);
  return Value(rest != 0 && (rest < 0) != (b < 0) ? rest + b : rest);
}

absl::StatusOr<Value> Repeat(Renderer& renderer, const Value& what, int64_t times) {
  times = std::max<int64_t>(times, 0);
  const size_t size =
      what.IsString() ? what.str().size() : what.list().items.size() * sizeof(Value);
  if (size > 0 && static_cast<uint64_t>(times) > renderer.limits().output_bytes_max / size) {
    return ResourceExhausted("a repetition is longer than {} bytes",
                             renderer.limits().output_bytes_max);
  }
  SY_RETURN_IF_ERROR(renderer.Charge(size * times));
  if (what.IsString()) {
    std::string text;
    if (size > 0) {
      for (int64_t i = 0; i < times; ++i) text += what.str();
    }
    return Value(std::move(text));
  }
  Values items;
  if (size > 0) {
    for (int64_t i = 0; i < times; ++i) {
      items.insert(items.end(), what.list().items.begin(), what.list().items.end());
    }
  }
  return MakeList(std::move(items), what.list().tuple);
}

bool IsWhole(const Value& value) { return value.IsInt() || value.IsBool(); }

}  // namespace

absl::StatusOr<Value> BinaryOperation(Renderer& renderer, const std::string& op, const Value& left,
                                      const Value& right) {
  if (IsWhole(left) && IsWhole(right)) return IntOperation(op, left.integer(), right.integer());
  if (left.IsNumber() && right.IsNumber()) {
    return FloatOperation(op, left.number(), right.number());
  }
  if (op == "+" && left.IsString() && right.IsString()) {
    return renderer.Text(left.str() + right.str());
  }
  if (op == "+" && left.IsList() && right.IsList() && left.list().tuple == right.list().tuple) {
    Values items = left.list().items;
    items.insert(items.end(), right.list().items.begin(), right.list().items.end());
    SY_RETURN_IF_ERROR(renderer.Charge(items.size() * sizeof(Value)));
    return MakeList(std::move(items), left.list().tuple);
  }
  if (op == "*" && (left.IsString() || left.IsList()) && IsWhole(right)) {
    return Repeat(renderer, left, right.integer());
  }
  if (op == "*" && (right.IsString() || right.IsList()) && IsWhole(left)) {
    return Repeat(renderer, right, left.integer());
  }
  if (op == "%" && left.IsString()) return PercentFormat(renderer, left.str(), right);
  return BadOperands(op, left, right);
}

absl::StatusOr<Value> Slice(Renderer& renderer, const Value& on, const Value& start,
                            const Value& stop, const Value& step) {
  if (on.IsUndefined()) return InvalidArgument("an undefined value cannot be sliced");
  if (!on.IsList() && !on.IsString()) {
    return InvalidArgument("'{}' object is not subscriptable by a slice", on.TypeName());
  }
  for (const Value* bound : {&start, &stop, &step}) {
    if (!bound->IsNone() && !IsWhole(*bound)) {
      return InvalidArgument("slice indices must be integers or None");
    }
  }
  const int64_t by = step.IsNone() ? 1 : step.integer();
  if (by == 0) return InvalidArgument("slice step cannot be zero");
  SY_RETURN_IF_ERROR(renderer.Charge(on.IsString() ? on.str().size() * sizeof(std::string_view)
                                                   : on.list().items.size() * sizeof(Value)));
  const std::vector<std::string_view> characters =
      on.IsString() ? Characters(on.str()) : std::vector<std::string_view>();
  const int64_t size = on.IsString() ? characters.size() : on.list().items.size();
  const int64_t lowest = by > 0 ? 0 : -1;
  const int64_t highest = by > 0 ? size : size - 1;
  const auto clamp = [&](const Value& bound, int64_t fallback) {
    if (bound.IsNone()) return fallback;
    const int64_t at =
        bound.integer() < 0 ? std::max(bound.integer(), -size - 1) + size : bound.integer();
    return std::clamp(at, lowest, highest);
  };
  const int64_t from = clamp(start, by > 0 ? lowest : highest);
  const int64_t to = clamp(stop, by > 0 ? highest : lowest);
  std::string text;
  Values items;
  for (int64_t i = from; by > 0 ? i < to : i > to;) {
    if (on.IsString()) {
      text.append(characters[i]);
    } else {
      items.push_back(on.list().items[i]);
    }
    if (__builtin_add_overflow(i, by, &i)) break;
  }
  if (on.IsString()) return Value(std::move(text));
  return MakeList(std::move(items), on.list().tuple);
}

absl::StatusOr<bool> Contains(const Value& container, const Value& item) {
  if (container.IsUndefined()) return false;
  if (container.IsString()) {
    if (!item.IsString()) {
      return InvalidArgument("'in <string>' requires string as left operand, not {}",
                             item.TypeName());
    }
    return FindPart(container.str(), item.str()) != std::string::npos;
  }
  if (container.IsList()) {
    const Values& items = container.list().items;
    return std::any_of(items.begin(), items.end(),
                       [&](const Value& known) { return Equal(known, item); });
  }
  if (container.IsDict()) {
    if (item.IsDict() || (item.IsList() && !item.list().tuple)) {
      return InvalidArgument("unhashable type: '{}'", item.TypeName());
    }
    return container.dict().Find(item) != nullptr;
  }
  return InvalidArgument("argument of type '{}' is not iterable", container.TypeName());
}

}  // namespace switchyard::gateway::jinja
