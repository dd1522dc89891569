// The parsed template. Immutable once the parser has handed it out.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "gateway/prompt/jinja/value.h"

namespace switchyard::gateway::jinja {

struct Expr;
struct Stmt;
using ExprPtr = std::unique_ptr<Expr>;
using Body = std::vector<std::unique_ptr<Stmt>>;

enum class ExprKind {
  kConst,     // value
  kName,      // name
  kList,      // args
  kTuple,     // args
  kDict,      // args: key, value, key, value, …
  kAttr,      // args[0].name
  kItem,      // args[0][args[1]]
  kSlice,     // args[0][args[1]:args[2]:args[3]], the last three may be null
  kCall,      // args[0](args[1…], named, *star, **star_star)
  kFilter,    // args[0] | name(args[1…], named); args[0] is null in a filter block
  kTest,      // args[0] is name(args[1…], named)
  kNot,       // args[0]
  kNegative,  // args[0]
  kPositive,  // args[0]
  kBinary,    // args[0] name args[1]; + - * / // % **
  kConcat,    // args[0] ~ args[1] ~ …
  kCompare,   // args[0] operators[0] args[1] operators[1] args[2] …
  kAnd,
  kOr,
  kCondition,  // args[1] if args[0] else args[2], which may be null
};

struct Expr {
  ExprKind kind;
  int line = 0;
  int depth = 1;  // nodes above one another
  std::string name;
  Value value;
  std::vector<ExprPtr> args;
  std::vector<std::pair<std::string, ExprPtr>> named;
  ExprPtr star;
  ExprPtr star_star;
  std::vector<std::string> operators;
};

enum class StmtKind {
  kText,      // text
  kOutput,    // expr
  kIf,        // branches
  kFor,       // for targets in expr if condition: body, else otherwise
  kSet,       // targets = expr
  kSetBlock,  // targets[0] = body | filter
  kMacro,     // name(parameters): body
  kCall,      // expr (a call) with a caller(parameters): body
  kFilter,    // body | filter
  kWith,      // targets = values: body
  kScope,     // body in a scope of its own
  kBreak,
  kContinue,
};

// A name, an attribute of a namespace, or a tuple of targets.
struct Target {
  std::string name;
  std::string attribute;      // not empty: name.attribute
  std::vector<Target> parts;  // not empty: unpacking
};

struct Parameter {
  std::string name;
  ExprPtr fallback;  // may be null
};

struct Stmt {
  StmtKind kind;
  int line = 0;
  std::string text;
  std::string name;
  ExprPtr expr;
  ExprPtr condition;
  ExprPtr filter;  // a chain of kFilter whose innermost args[0] is null
  std::vector<std::pair<ExprPtr, Body>> branches;  // the condition of else is null
  std::vector<Target> targets;
  std::vector<ExprPtr> values;
  std::vector<Parameter> parameters;
  Body body;
  Body otherwise;
};

}  // namespace switchyard::gateway::jinja
