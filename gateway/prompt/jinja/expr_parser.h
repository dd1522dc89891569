// The expressions of a template; the base of the parser of statements.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "gateway/prompt/jinja/ast.h"
#include "gateway/prompt/jinja/lexer.h"

namespace switchyard::gateway::jinja {

class ExprParser {
 public:
  explicit ExprParser(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}

  // An expression with `… if … else …`, or without.
  absl::StatusOr<ExprPtr> Expression(bool with_condition = true);
  // One expression or, with commas, a tuple of several.
  absl::StatusOr<ExprPtr> TupleOrExpression(bool with_condition = true);
  // `| filter | filter` on `on`, which may be null. start_inline: the first comes without a bar.
  absl::StatusOr<ExprPtr> Filters(ExprPtr on, bool start_inline);
  absl::StatusOr<Target> AssignTarget(bool with_namespace);

  const Token& Now() const { return tokens_[at_]; }
  const Token& Ahead() const { return tokens_[at_ + 1 < tokens_.size() ? at_ + 1 : at_]; }
  void Next() {
    if (at_ + 1 < tokens_.size()) ++at_;
  }
  bool IsName(std::string_view name) const { return Now().Is(TokenKind::kName, name); }
  bool IsOp(std::string_view op) const { return Now().Is(TokenKind::kOperator, op); }
  bool SkipName(std::string_view name);
  bool SkipOp(std::string_view op);
  absl::Status ExpectOp(std::string_view op);
  absl::Status ExpectName(std::string_view name);
  absl::StatusOr<std::string> AnyName();
  absl::Status Fail(std::string_view what) const;
  absl::Status Unexpected() const;

 private:
  using Level = absl::StatusOr<ExprPtr> (ExprParser::*)();

  absl::StatusOr<ExprPtr> Condition();
  absl::StatusOr<ExprPtr> Or();
  absl::StatusOr<ExprPtr> And();
  absl::StatusOr<ExprPtr> Not();
  absl::StatusOr<ExprPtr> Comparison();
  absl::StatusOr<ExprPtr> Sum();
  absl::StatusOr<ExprPtr> Concat();
  absl::StatusOr<ExprPtr> Product();
  absl::StatusOr<ExprPtr> Power();
  absl::StatusOr<ExprPtr> UnaryWithFilters() { return Unary(true); }
  absl::StatusOr<ExprPtr> Unary(bool with_filters);
  absl::StatusOr<ExprPtr> Primary();
  absl::StatusOr<ExprPtr> NameOrConstant();
  absl::StatusOr<ExprPtr> Number();
  absl::StatusOr<ExprPtr> Parenthesised();
  absl::StatusOr<ExprPtr> ListLiteral();
  absl::StatusOr<ExprPtr> DictLiteral();
  absl::StatusOr<ExprPtr> Postfix(ExprPtr on);
  absl::StatusOr<ExprPtr> Attribute(ExprPtr on);
  absl::StatusOr<ExprPtr> Subscript(ExprPtr on);
  absl::StatusOr<ExprPtr> FiltersAndTests(ExprPtr on);
  absl::StatusOr<ExprPtr> Test(ExprPtr on);
  absl::StatusOr<ExprPtr> Call(ExprPtr on);
  absl::Status CallArguments(Expr* call);
  // Left-associative operators of one level.
  absl::StatusOr<ExprPtr> Binary(Level next, std::initializer_list<std::string_view> operators);

  ExprPtr Make(ExprKind kind) const;
  // Counts the depth of a node whose arguments are complete; refuses one that is too deep.
  absl::StatusOr<ExprPtr> Done(ExprPtr expr) const;
  bool AtTupleEnd() const;

  std::vector<Token> tokens_;
  size_t at_ = 0;
  int nesting_ = 0;
};

}  // namespace switchyard::gateway::jinja
