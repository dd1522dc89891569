#include "gateway/prompt/jinja/parser.h"

#include <initializer_list>
#include <utility>

#include "gateway/prompt/jinja/expr_parser.h"
#include "gateway/prompt/jinja/lexer.h"
#include "services/base/status.h"

namespace switchyard::gateway::jinja {
namespace {

using StmtPtr = std::unique_ptr<Stmt>;

constexpr size_t kSourceBytesMax = 1 << 20;
constexpr int kNestingMax = 50;

class Parser {
 public:
  explicit Parser(std::vector<Token> tokens) : p_(std::move(tokens)) {}

  absl::StatusOr<Body> Run() {
    SY_ASSIGN_OR_RETURN(Body body, Statements({}));
    if (p_.Now().kind != TokenKind::kEnd) return p_.Unexpected();
    return body;
  }

 private:
  // Up to one of the tags named (left standing, behind its {%), or the end of the template.
  absl::StatusOr<Body> Statements(std::initializer_list<std::string_view> ends) {
    if (++nesting_ > kNestingMax) return p_.Fail("the blocks are nested too deep");
    Body body;
    while (p_.Now().kind != TokenKind::kEnd) {
      if (p_.Now().kind == TokenKind::kText) {
        StmtPtr text = Make(StmtKind::kText);
        text->text = p_.Now().text;
        p_.Next();
        body.push_back(std::move(text));
        continue;
      }
      if (p_.Now().kind == TokenKind::kOutputBegin) {
        SY_ASSIGN_OR_RETURN(StmtPtr output, Output());
        body.push_back(std::move(output));
        continue;
      }
      p_.Next();  // {%
      for (std::string_view end : ends) {
        if (!p_.IsName(end)) continue;
        --nesting_;
        return body;
      }
      SY_ASSIGN_OR_RETURN(StmtPtr statement, Statement());
      body.push_back(std::move(statement));
    }
    if (ends.size() > 0) {
      return p_.Fail(fmt::format("the template ends where '{}' is expected", *ends.begin()));
    }
    --nesting_;
    return body;
  }

  // The body of a block up to its end tag, with that tag.
  absl::StatusOr<Body> BodyUntil(std::string_view end) {
    SY_RETURN_IF_ERROR(EndTag());
    SY_ASSIGN_OR_RETURN(Body body, Statements({end}));
    p_.Next();
    SY_RETURN_IF_ERROR(EndTag());
    return body;
  }

  absl::Status EndTag() {
    if (p_.Now().kind != TokenKind::kBlockEnd) return p_.Unexpected();
    p_.Next();
    return absl::OkStatus();
  }

  StmtPtr Make(StmtKind kind) const {
    auto statement = std::make_unique<Stmt>();
    statement->kind = kind;
    statement->line = p_.Now().line;
    return statement;
  }

  absl::StatusOr<StmtPtr> Output() {
    StmtPtr output = Make(StmtKind::kOutput);
    p_.Next();
    SY_ASSIGN_OR_RETURN(output->expr, p_.TupleOrExpression());
    if (p_.Now().kind != TokenKind::kOutputEnd) return p_.Unexpected();
    p_.Next();
    return output;
  }

  absl::StatusOr<StmtPtr> Statement() {
    if (p_.IsName("if")) return If();
    if (p_.IsName("for")) return For();
    if (p_.IsName("set")) return Set();
    if (p_.IsName("macro")) return Macro();
    if (p_.IsName("call")) return CallBlock();
    if (p_.IsName("filter")) return FilterBlock();
    if (p_.IsName("with")) return With();
    if (p_.IsName("generation")) return Generation();
    if (p_.IsName("break") || p_.IsName("continue")) {
      StmtPtr jump = Make(p_.IsName("break") ? StmtKind::kBreak : StmtKind::kContinue);
      if (loops_ == 0) return p_.Fail(fmt::format("'{}' outside of a loop", p_.Now().text));
      p_.Next();
      SY_RETURN_IF_ERROR(EndTag());
      return jump;
    }
    return p_.Fail(fmt::format("the tag '{}' is unknown or has no block here", p_.Now().text));
  }

  absl::StatusOr<StmtPtr> If() {
    StmtPtr whole = Make(StmtKind::kIf);
    p_.Next();
    while (true) {
      SY_ASSIGN_OR_RETURN(ExprPtr condition, p_.TupleOrExpression());
      SY_RETURN_IF_ERROR(EndTag());
      SY_ASSIGN_OR_RETURN(Body body, Statements({"endif", "elif", "else"}));
      whole->branches.emplace_back(std::move(condition), std::move(body));
      if (!p_.SkipName("elif")) break;
    }
    if (p_.SkipName("else")) {
      SY_ASSIGN_OR_RETURN(Body body, BodyUntil("endif"));
      whole->branches.emplace_back(nullptr, std::move(body));
      return whole;
    }
    p_.Next();
    SY_RETURN_IF_ERROR(EndTag());
    return whole;
  }

  absl::StatusOr<StmtPtr> For() {
    StmtPtr whole = Make(StmtKind::kFor);
    p_.Next();
    SY_ASSIGN_OR_RETURN(Target target, p_.AssignTarget(false));
    whole->targets.push_back(std::move(target));
    SY_RETURN_IF_ERROR(p_.ExpectName("in"));
    SY_ASSIGN_OR_RETURN(whole->expr, p_.TupleOrExpression(/*with_condition=*/false));
    if (p_.SkipName("if")) {
      SY_ASSIGN_OR_RETURN(whole->condition, p_.Expression());
    }
    if (p_.IsName("recursive")) return p_.Fail("recursive loops are not supported");
    SY_RETURN_IF_ERROR(EndTag());
    ++loops_;
    auto body = Statements({"endfor", "else"});
    --loops_;
    if (!body.ok()) return body.status();
    whole->body = std::move(*body);
    if (p_.SkipName("else")) {
      SY_ASSIGN_OR_RETURN(whole->otherwise, BodyUntil("endfor"));
      return whole;
    }
    p_.Next();
    SY_RETURN_IF_ERROR(EndTag());
    return whole;
  }

  absl::StatusOr<StmtPtr> Set() {
    StmtPtr whole = Make(StmtKind::kSet);
    p_.Next();
    SY_ASSIGN_OR_RETURN(Target target, p_.AssignTarget(true));
    whole->targets.push_back(std::move(target));
    if (p_.SkipOp("=")) {
      SY_ASSIGN_OR_RETURN(whole->expr, p_.TupleOrExpression());
      SY_RETURN_IF_ERROR(EndTag());
      return whole;
    }
    whole->kind = StmtKind::kSetBlock;
    SY_ASSIGN_OR_RETURN(whole->filter, p_.Filters(nullptr, false));
    SY_ASSIGN_OR_RETURN(whole->body, BlockBody("endset"));
    return whole;
  }

  // A body that no break or continue leaves.
  absl::StatusOr<Body> BlockBody(std::string_view end) {
    const int loops = std::exchange(loops_, 0);
    auto body = BodyUntil(end);
    loops_ = loops;
    return body;
  }

  absl::Status Signature(std::vector<Parameter>* parameters) {
    SY_RETURN_IF_ERROR(p_.ExpectOp("("));
    while (!p_.IsOp(")")) {
      Parameter parameter;
      SY_ASSIGN_OR_RETURN(parameter.name, p_.AnyName());
      if (p_.SkipOp("=")) {
        SY_ASSIGN_OR_RETURN(parameter.fallback, p_.Expression());
      } else if (!parameters->empty() && parameters->back().fallback != nullptr) {
        return p_.Fail("non-default argument follows default argument");
      }
      parameters->push_back(std::move(parameter));
      if (!p_.SkipOp(",")) break;
    }
    return p_.ExpectOp(")");
  }

  absl::StatusOr<StmtPtr> Macro() {
    StmtPtr whole = Make(StmtKind::kMacro);
    p_.Next();
    SY_ASSIGN_OR_RETURN(whole->name, p_.AnyName());
    SY_RETURN_IF_ERROR(Signature(&whole->parameters));
    SY_ASSIGN_OR_RETURN(whole->body, BlockBody("endmacro"));
    return whole;
  }

  absl::StatusOr<StmtPtr> CallBlock() {
    StmtPtr whole = Make(StmtKind::kCall);
    p_.Next();
    if (p_.IsOp("(")) SY_RETURN_IF_ERROR(Signature(&whole->parameters));
    SY_ASSIGN_OR_RETURN(whole->expr, p_.Expression());
    if (whole->expr->kind != ExprKind::kCall) return p_.Fail("a call expected");
    SY_ASSIGN_OR_RETURN(whole->body, BlockBody("endcall"));
    return whole;
  }

  absl::StatusOr<StmtPtr> FilterBlock() {
    StmtPtr whole = Make(StmtKind::kFilter);
    p_.Next();
    SY_ASSIGN_OR_RETURN(whole->filter, p_.Filters(nullptr, true));
    SY_ASSIGN_OR_RETURN(whole->body, BlockBody("endfilter"));
    return whole;
  }

  absl::StatusOr<StmtPtr> With() {
    StmtPtr whole = Make(StmtKind::kWith);
    p_.Next();
    while (p_.Now().kind != TokenKind::kBlockEnd) {
      if (!whole->targets.empty()) SY_RETURN_IF_ERROR(p_.ExpectOp(","));
      SY_ASSIGN_OR_RETURN(Target target, p_.AssignTarget(false));
      SY_RETURN_IF_ERROR(p_.ExpectOp("="));
      SY_ASSIGN_OR_RETURN(ExprPtr value, p_.Expression());
      whole->targets.push_back(std::move(target));
      whole->values.push_back(std::move(value));
    }
    SY_ASSIGN_OR_RETURN(whole->body, BodyUntil("endwith"));
    return whole;
  }

  // Marks the assistant's words for training; for a prompt only its body counts.
  absl::StatusOr<StmtPtr> Generation() {
    StmtPtr whole = Make(StmtKind::kScope);
    p_.Next();
    SY_ASSIGN_OR_RETURN(whole->body, BlockBody("endgeneration"));
    return whole;
  }

  ExprParser p_;
  int nesting_ = 0;
  int loops_ = 0;
};

}  // namespace

absl::StatusOr<Body> Parse(std::string_view source) {
  if (source.size() > kSourceBytesMax) {
    return InvalidArgument("the template has {} bytes, more than {}", source.size(),
                           kSourceBytesMax);
  }
  SY_ASSIGN_OR_RETURN(std::vector<Token> tokens, Tokenize(source));
  return Parser(std::move(tokens)).Run();
}

}  // namespace switchyard::gateway::jinja
