#include "gateway/prompt/jinja/expr_parser.h"

#include <algorithm>
#include <charconv>
#include <cstdlib>

#include "gateway/prompt/jinja/parser.h"
#include "services/base/status.h"

namespace switchyard::gateway::jinja {
namespace {

constexpr int kDepthMax = 200;
constexpr int kNestingMax = 100;

// Counts the recursion of the parser itself.
class Nested {
 public:
  explicit Nested(int* nesting) : nesting_(nesting) { ++*nesting_; }
  ~Nested() { --*nesting_; }

 private:
  int* nesting_;
};

}  // namespace

absl::Status ExprParser::Fail(std::string_view what) const {
  return InvalidArgument("line {}: {}", Now().line, what);
}

absl::Status ExprParser::Unexpected() const {
  switch (Now().kind) {
    case TokenKind::kEnd:
      return Fail("unexpected end of the template");
    case TokenKind::kOutputEnd:
      return Fail("unexpected '}}'");
    case TokenKind::kBlockEnd:
      return Fail("unexpected '%}'");
    default:
      return Fail(fmt::format("unexpected '{}'", Now().text));
  }
}

bool ExprParser::SkipName(std::string_view name) {
  if (!IsName(name)) return false;
  Next();
  return true;
}

bool ExprParser::SkipOp(std::string_view op) {
  if (!IsOp(op)) return false;
  Next();
  return true;
}

absl::Status ExprParser::ExpectOp(std::string_view op) {
  if (SkipOp(op)) return absl::OkStatus();
  return Fail(fmt::format("'{}' expected, got '{}'", op, Now().text));
}

absl::Status ExprParser::ExpectName(std::string_view name) {
  if (SkipName(name)) return absl::OkStatus();
  return Fail(fmt::format("'{}' expected, got '{}'", name, Now().text));
}

absl::StatusOr<std::string> ExprParser::AnyName() {
  if (Now().kind != TokenKind::kName) return Unexpected();
  std::string name = Now().text;
  Next();
  return name;
}

ExprPtr ExprParser::Make(ExprKind kind) const {
  auto expr = std::make_unique<Expr>();
  expr->kind = kind;
  expr->line = Now().line;
  return expr;
}

absl::StatusOr<ExprPtr> ExprParser::Done(ExprPtr expr) const {
  const auto under = [&](const ExprPtr& part) {
    if (part != nullptr) expr->depth = std::max(expr->depth, part->depth + 1);
  };
  for (const ExprPtr& arg : expr->args) under(arg);
  for (const auto& [name, arg] : expr->named) under(arg);
  under(expr->star);
  under(expr->star_star);
  if (expr->depth > kDepthMax) return Fail("the expression is too long or too deep");
  return expr;
}

absl::StatusOr<ExprPtr> ExprParser::Expression(bool with_condition) {
  const Nested nested(&nesting_);
  if (nesting_ > kNestingMax) return Fail("the expression is nested too deep");
  return with_condition ? Condition() : Or();
}

absl::StatusOr<ExprPtr> ExprParser::Condition() {
  SY_ASSIGN_OR_RETURN(ExprPtr expr, Or());
  while (IsName("if")) {
    ExprPtr whole = Make(ExprKind::kCondition);
    Next();
    SY_ASSIGN_OR_RETURN(ExprPtr condition, Or());
    ExprPtr otherwise;
    if (SkipName("else")) {
      SY_ASSIGN_OR_RETURN(otherwise, Expression());
    }
    whole->args.push_back(std::move(condition));
    whole->args.push_back(std::move(expr));
    whole->args.push_back(std::move(otherwise));
    SY_ASSIGN_OR_RETURN(expr, Done(std::move(whole)));
  }
  return expr;
}

absl::StatusOr<ExprPtr> ExprParser::Or() {
  SY_ASSIGN_OR_RETURN(ExprPtr left, And());
  while (IsName("or")) {
    ExprPtr whole = Make(ExprKind::kOr);
    Next();
    SY_ASSIGN_OR_RETURN(ExprPtr right, And());
    whole->args.push_back(std::move(left));
    whole->args.push_back(std::move(right));
    SY_ASSIGN_OR_RETURN(left, Done(std::move(whole)));
  }
  return left;
}

absl::StatusOr<ExprPtr> ExprParser::And() {
  SY_ASSIGN_OR_RETURN(ExprPtr left, Not());
  while (IsName("and")) {
    ExprPtr whole = Make(ExprKind::kAnd);
    Next();
    SY_ASSIGN_OR_RETURN(ExprPtr right, Not());
    whole->args.push_back(std::move(left));
    whole->args.push_back(std::move(right));
    SY_ASSIGN_OR_RETURN(left, Done(std::move(whole)));
  }
  return left;
}

absl::StatusOr<ExprPtr> ExprParser::Not() {
  if (!IsName("not")) return Comparison();
  const Nested nested(&nesting_);
  if (nesting_ > kNestingMax) return Fail("the expression is nested too deep");
  ExprPtr whole = Make(ExprKind::kNot);
  Next();
  SY_ASSIGN_OR_RETURN(ExprPtr part, Not());
  whole->args.push_back(std::move(part));
  return Done(std::move(whole));
}

absl::StatusOr<ExprPtr> ExprParser::Comparison() {
  ExprPtr whole = Make(ExprKind::kCompare);
  SY_ASSIGN_OR_RETURN(ExprPtr first, Sum());
  whole->args.push_back(std::move(first));
  while (true) {
    std::string op;
    for (std::string_view known : {"==", "!=", "<", "<=", ">", ">="}) {
      if (IsOp(known)) op = known;
    }
    if (IsName("in")) op = "in";
    if (IsName("not") && Ahead().Is(TokenKind::kName, "in")) {
      op = "not in";
      Next();
    }
    if (op.empty()) break;
    Next();
    SY_ASSIGN_OR_RETURN(ExprPtr next, Sum());
    whole->operators.push_back(std::move(op));
    whole->args.push_back(std::move(next));
  }
  if (whole->operators.empty()) return std::move(whole->args[0]);
  return Done(std::move(whole));
}

absl::StatusOr<ExprPtr> ExprParser::Binary(Level next,
                                           std::initializer_list<std::string_view> operators) {
  SY_ASSIGN_OR_RETURN(ExprPtr left, (this->*next)());
  const auto is_operator = [&] {
    return std::any_of(operators.begin(), operators.end(),
                       [&](std::string_view op) { return IsOp(op); });
  };
  while (is_operator()) {
    ExprPtr whole = Make(ExprKind::kBinary);
    whole->name = Now().text;
    Next();
    SY_ASSIGN_OR_RETURN(ExprPtr right, (this->*next)());
    whole->args.push_back(std::move(left));
    whole->args.push_back(std::move(right));
    SY_ASSIGN_OR_RETURN(left, Done(std::move(whole)));
  }
  return left;
}

absl::StatusOr<ExprPtr> ExprParser::Sum() { return Binary(&ExprParser::Concat, {"+", "-"}); }
absl::StatusOr<ExprPtr> ExprParser::Product() {
  return Binary(&ExprParser::Power, {"*", "/", "//", "%"});
}
absl::StatusOr<ExprPtr> ExprParser::Power() {
  return Binary(&ExprParser::UnaryWithFilters, {"**"});
}

absl::StatusOr<ExprPtr> ExprParser::Concat() {
  ExprPtr whole = Make(ExprKind::kConcat);
  SY_ASSIGN_OR_RETURN(ExprPtr first, Product());
  if (!IsOp("~")) return first;
  whole->args.push_back(std::move(first));
  while (SkipOp("~")) {
    SY_ASSIGN_OR_RETURN(ExprPtr next, Product());
    whole->args.push_back(std::move(next));
  }
  return Done(std::move(whole));
}

absl::StatusOr<ExprPtr> ExprParser::Unary(bool with_filters) {
  const Nested nested(&nesting_);
  if (nesting_ > kNestingMax) return Fail("the expression is nested too deep");
  ExprPtr expr;
  if (IsOp("-") || IsOp("+")) {
    ExprPtr whole = Make(IsOp("-") ? ExprKind::kNegative : ExprKind::kPositive);
    Next();
    SY_ASSIGN_OR_RETURN(ExprPtr part, Unary(false));
    whole->args.push_back(std::move(part));
    SY_ASSIGN_OR_RETURN(expr, Done(std::move(whole)));
  } else {
    SY_ASSIGN_OR_RETURN(expr, Primary());
  }
  SY_ASSIGN_OR_RETURN(expr, Postfix(std::move(expr)));
  if (!with_filters) return expr;
  return FiltersAndTests(std::move(expr));
}

absl::StatusOr<ExprPtr> ExprParser::Primary() {
  switch (Now().kind) {
    case TokenKind::kName:
      return NameOrConstant();
    case TokenKind::kString: {
      ExprPtr expr = Make(ExprKind::kConst);
      std::string text;
      for (; Now().kind == TokenKind::kString; Next()) text += Now().text;
      expr->value = Value(std::move(text));
      return expr;
    }
    case TokenKind::kInteger:
    case TokenKind::kFloat:
      return Number();
    default:
      if (IsOp("(")) return Parenthesised();
      if (IsOp("[")) return ListLiteral();
      if (IsOp("{")) return DictLiteral();
      return Unexpected();
  }
}

absl::StatusOr<ExprPtr> ExprParser::NameOrConstant() {
  const std::string& name = Now().text;
  ExprPtr expr = Make(ExprKind::kConst);
  if (name == "true" || name == "True") {
    expr->value = Value(true);
  } else if (name == "false" || name == "False") {
    expr->value = Value(false);
  } else if (name != "none" && name != "None") {
    expr->kind = ExprKind::kName;
    expr->name = name;
  }
  Next();
  return expr;
}

absl::StatusOr<ExprPtr> ExprParser::Number() {
  ExprPtr expr = Make(ExprKind::kConst);
  const std::string& text = Now().text;
  if (Now().kind == TokenKind::kFloat) {
    expr->value = Value(std::strtod(text.c_str(), nullptr));
  } else {
    int64_t number = 0;
    const auto end = std::from_chars(text.data(), text.data() + text.size(), number);
    if (end.ec != std::errc()) return Fail(fmt::format("{} is too large", text));
    expr->value = Value(number);
  }
  Next();
  return expr;
}

bool ExprParser::AtTupleEnd() const {
  return Now().kind == TokenKind::kOutputEnd || Now().kind == TokenKind::kBlockEnd || IsOp(")");
}

absl::StatusOr<ExprPtr> ExprParser::TupleOrExpression(bool with_condition) {
  ExprPtr whole = Make(ExprKind::kTuple);
  bool tuple = false;
  while (!AtTupleEnd()) {
    SY_ASSIGN_OR_RETURN(ExprPtr item, Expression(with_condition));
    whole->args.push_back(std::move(item));
    if (!SkipOp(",")) break;
    tuple = true;
  }
  if (tuple) return Done(std::move(whole));
  if (whole->args.empty()) return Unexpected();
  return std::move(whole->args[0]);
}

absl::StatusOr<ExprPtr> ExprParser::Parenthesised() {
  ExprPtr empty = Make(ExprKind::kTuple);
  Next();
  if (SkipOp(")")) return empty;
  SY_ASSIGN_OR_RETURN(ExprPtr expr, TupleOrExpression());
  SY_RETURN_IF_ERROR(ExpectOp(")"));
  return expr;
}

absl::StatusOr<ExprPtr> ExprParser::ListLiteral() {
  ExprPtr whole = Make(ExprKind::kList);
  Next();
  while (!IsOp("]")) {
    SY_ASSIGN_OR_RETURN(ExprPtr item, Expression());
    whole->args.push_back(std::move(item));
    if (!SkipOp(",")) break;
  }
  SY_RETURN_IF_ERROR(ExpectOp("]"));
  return Done(std::move(whole));
}

absl::StatusOr<ExprPtr> ExprParser::DictLiteral() {
  ExprPtr whole = Make(ExprKind::kDict);
  Next();
  while (!IsOp("}")) {
    SY_ASSIGN_OR_RETURN(ExprPtr key, Expression());
    SY_RETURN_IF_ERROR(ExpectOp(":"));
    SY_ASSIGN_OR_RETURN(ExprPtr value, Expression());
    whole->args.push_back(std::move(key));
    whole->args.push_back(std::move(value));
    if (!SkipOp(",")) break;
  }
  SY_RETURN_IF_ERROR(ExpectOp("}"));
  return Done(std::move(whole));
}

absl::StatusOr<ExprPtr> ExprParser::Postfix(ExprPtr on) {
  while (true) {
    if (IsOp(".")) {
      SY_ASSIGN_OR_RETURN(on, Attribute(std::move(on)));
    } else if (IsOp("[")) {
      SY_ASSIGN_OR_RETURN(on, Subscript(std::move(on)));
    } else if (IsOp("(")) {
      SY_ASSIGN_OR_RETURN(on, Call(std::move(on)));
    } else {
      return on;
    }
  }
}

absl::StatusOr<ExprPtr> ExprParser::Attribute(ExprPtr on) {
  ExprPtr whole = Make(ExprKind::kAttr);
  Next();
  whole->args.push_back(std::move(on));
  if (Now().kind == TokenKind::kInteger) {
    whole->kind = ExprKind::kItem;
    SY_ASSIGN_OR_RETURN(ExprPtr index, Number());
    whole->args.push_back(std::move(index));
  } else {
    SY_ASSIGN_OR_RETURN(whole->name, AnyName());
  }
  return Done(std::move(whole));
}

absl::StatusOr<ExprPtr> ExprParser::Subscript(ExprPtr on) {
  ExprPtr whole = Make(ExprKind::kItem);
  Next();
  whole->args.push_back(std::move(on));
  ExprPtr first;
  if (!IsOp(":")) {
    SY_ASSIGN_OR_RETURN(first, TupleOrExpression());
  }
  if (!IsOp(":")) {
    whole->args.push_back(std::move(first));
  } else {
    whole->kind = ExprKind::kSlice;
    whole->args.push_back(std::move(first));
    while (whole->args.size() < 4) {
      ExprPtr part;
      if (SkipOp(":") && !IsOp(":") && !IsOp("]")) {
        SY_ASSIGN_OR_RETURN(part, Expression());
      }
      whole->args.push_back(std::move(part));
    }
  }
  SY_RETURN_IF_ERROR(ExpectOp("]"));
  return Done(std::move(whole));
}

absl::StatusOr<ExprPtr> ExprParser::Call(ExprPtr on) {
  ExprPtr whole = Make(ExprKind::kCall);
  whole->args.push_back(std::move(on));
  SY_RETURN_IF_ERROR(CallArguments(whole.get()));
  return Done(std::move(whole));
}

absl::Status ExprParser::CallArguments(Expr* call) {
  SY_RETURN_IF_ERROR(ExpectOp("("));
  while (!IsOp(")")) {
    if (SkipOp("*")) {
      if (call->star != nullptr || call->star_star != nullptr) return Unexpected();
      SY_ASSIGN_OR_RETURN(call->star, Expression());
    } else if (SkipOp("**")) {
      if (call->star_star != nullptr) return Unexpected();
      SY_ASSIGN_OR_RETURN(call->star_star, Expression());
    } else if (Now().kind == TokenKind::kName && Ahead().Is(TokenKind::kOperator, "=")) {
      std::string name = Now().text;
      Next();
      Next();
      SY_ASSIGN_OR_RETURN(ExprPtr value, Expression());
      call->named.emplace_back(std::move(name), std::move(value));
    } else {
      if (!call->named.empty() || call->star != nullptr || call->star_star != nullptr) {
        return Fail("a positional argument behind others");
      }
      SY_ASSIGN_OR_RETURN(ExprPtr value, Expression());
      call->args.push_back(std::move(value));
    }
    if (!SkipOp(",")) break;
  }
  return ExpectOp(")");
}

absl::StatusOr<ExprPtr> ExprParser::Filters(ExprPtr on, bool start_inline) {
  while (start_inline || IsOp("|")) {
    if (!start_inline) Next();
    start_inline = false;
    ExprPtr whole = Make(ExprKind::kFilter);
    SY_ASSIGN_OR_RETURN(whole->name, AnyName());
    if (!IsFilter(whole->name)) return Fail(fmt::format("no filter named '{}'", whole->name));
    whole->args.push_back(std::move(on));
    if (IsOp("(")) SY_RETURN_IF_ERROR(CallArguments(whole.get()));
    SY_ASSIGN_OR_RETURN(on, Done(std::move(whole)));
  }
  return on;
}

absl::StatusOr<ExprPtr> ExprParser::FiltersAndTests(ExprPtr on) {
  while (true) {
    if (IsOp("|")) {
      SY_ASSIGN_OR_RETURN(on, Filters(std::move(on), false));
    } else if (IsName("is")) {
      SY_ASSIGN_OR_RETURN(on, Test(std::move(on)));
    } else if (IsOp("(")) {
      SY_ASSIGN_OR_RETURN(on, Call(std::move(on)));
    } else {
      return on;
    }
  }
}

absl::StatusOr<ExprPtr> ExprParser::Test(ExprPtr on) {
  ExprPtr whole = Make(ExprKind::kTest);
  Next();
  const bool negated = SkipName("not");
  SY_ASSIGN_OR_RETURN(whole->name, AnyName());
  if (!IsTest(whole->name)) return Fail(fmt::format("no test named '{}'", whole->name));
  whole->args.push_back(std::move(on));
  const bool operand_follows = Now().kind == TokenKind::kName || Now().kind == TokenKind::kString ||
                               Now().kind == TokenKind::kInteger ||
                               Now().kind == TokenKind::kFloat || IsOp("[") || IsOp("{");
  if (IsOp("(")) {
    SY_RETURN_IF_ERROR(CallArguments(whole.get()));
  } else if (operand_follows && !IsName("else") && !IsName("or") && !IsName("and")) {
    if (IsName("is")) return Fail("tests cannot be chained with is");
    SY_ASSIGN_OR_RETURN(ExprPtr operand, Primary());
    SY_ASSIGN_OR_RETURN(operand, Postfix(std::move(operand)));
    whole->args.push_back(std::move(operand));
  }
  SY_ASSIGN_OR_RETURN(whole, Done(std::move(whole)));
  if (!negated) return whole;
  ExprPtr negation = Make(ExprKind::kNot);
  negation->args.push_back(std::move(whole));
  return Done(std::move(negation));
}

absl::StatusOr<Target> ExprParser::AssignTarget(bool with_namespace) {
  Target tuple;
  bool is_tuple = false;
  const bool parenthesised = SkipOp("(");
  while (true) {
    Target target;
    SY_ASSIGN_OR_RETURN(target.name, AnyName());
    if (with_namespace && SkipOp(".")) {
      SY_ASSIGN_OR_RETURN(target.attribute, AnyName());
    }
    tuple.parts.push_back(std::move(target));
    if (!SkipOp(",")) break;
    is_tuple = true;
    if (IsName("in") || IsOp("=") || IsOp(")")) break;
  }
  if (parenthesised) SY_RETURN_IF_ERROR(ExpectOp(")"));
  if (is_tuple) return tuple;
  return std::move(tuple.parts[0]);
}

}  // namespace switchyard::gateway::jinja
