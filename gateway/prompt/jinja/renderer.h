// Runs a parsed template once: scopes, statements and expressions. Made for one render on one
// thread. Every step, every nesting and every byte of text made on the way is counted against
// bounds, so that no template and no input can hang or exhaust the server.
#pragma once

#include <ctime>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "gateway/prompt/jinja/ast.h"
#include "gateway/prompt/jinja/value.h"

namespace switchyard::gateway::jinja {

struct Limits {
  size_t output_bytes_max = 16 << 20;  // also of every text on the way
  uint64_t work_bytes_max = 1 << 30;   // of all texts and lists made and walked through
  uint64_t steps_max = 2'000'000;      // expressions and statements
  int depth_max = 600;                 // expressions, statements and macros inside one another
};

class Renderer {
 public:
  Renderer(const Limits& limits, std::function<std::time_t()> now);
  ~Renderer();
  Renderer(const Renderer&) = delete;
  Renderer& operator=(const Renderer&) = delete;

  void SetGlobal(const std::string& name, Value value);
  // INVALID_ARGUMENT with the line, or with the words of raise_exception alone.
  absl::StatusOr<std::string> Run(const Body& body);

  // What functions, filters and methods use.
  absl::Status Charge(uint64_t bytes);
  // A text as value, counted.
  absl::StatusOr<Value> Text(std::string text);
  absl::StatusOr<std::string> ToText(const Value& value) const;
  absl::StatusOr<std::string> ToJson(const Value& value, const JsonStyle& style) const;
  // The items of what a for loop takes: list, tuple, text (characters), dict (keys), Undefined.
  absl::StatusOr<Values> Items(const Value& value);
  absl::StatusOr<Value> Attribute(const Value& on, const std::string& name);
  absl::StatusOr<Value> Item(const Value& on, const Value& key);
  absl::StatusOr<Value> Call(const Value& function, const Arguments& arguments);
  absl::StatusOr<Value> Filter(const std::string& name, const Value& on,
                               const Arguments& arguments);
  absl::StatusOr<bool> Test(const std::string& name, const Value& on, const Arguments& arguments);
  absl::StatusOr<Value> MakeNamespace(Dict attributes);
  // The status of raise_exception: its words reach the client as they are.
  absl::Status Raise(const std::string& message);
  std::time_t Now() const { return now_(); }
  const Limits& limits() const { return limits_; }

 private:
  struct Scope {
    std::shared_ptr<Scope> parent;
    std::vector<std::pair<std::string, Value>> variables;
  };
  enum class Flow { kNext, kBreak, kContinue };

  // Counts a step and a nesting for as long as it lives.
  class Step;

  // render_statements.cc
  absl::StatusOr<Flow> Exec(const Body& body);
  absl::StatusOr<Flow> ExecOne(const Stmt& statement);
  absl::Status ExecOutput(const Stmt& statement);
  absl::StatusOr<Flow> ExecIf(const Stmt& statement);
  absl::StatusOr<Flow> ExecFor(const Stmt& statement);
  absl::StatusOr<Values> LoopItems(const Stmt& statement);
  absl::Status ExecSet(const Stmt& statement);
  absl::Status ExecSetBlock(const Stmt& statement);
  absl::Status ExecCall(const Stmt& statement);
  absl::Status ExecFilterBlock(const Stmt& statement);
  absl::StatusOr<Flow> ExecWith(const Stmt& statement);
  absl::StatusOr<Flow> ExecScoped(const Body& body);
  // Runs a body in a scope of its own and returns what it wrote.
  absl::StatusOr<std::string> Captured(const Body& body);
  Value MakeMacro(const Stmt& statement, const std::string& name);
  absl::StatusOr<Value> CallMacro(const Stmt& statement, const std::string& name,
                                  const std::shared_ptr<Scope>& closure,
                                  const Arguments& arguments);
  absl::Status Assign(const Target& target, const Value& value);
  absl::Status Write(std::string_view text);
  void Push() { scope_ = std::make_shared<Scope>(Scope{scope_, {}}); }
  void Pop() { scope_ = scope_->parent; }
  void SetVariable(const std::string& name, Value value);
  const Value* FindVariable(const std::string& name) const;

  // render_expressions.cc
  absl::StatusOr<Value> Eval(const Expr& expr);
  absl::StatusOr<Value> EvalOne(const Expr& expr);
  absl::StatusOr<Value> EvalName(const Expr& expr);
  absl::StatusOr<Value> EvalList(const Expr& expr);
  absl::StatusOr<Value> EvalDict(const Expr& expr);
  absl::StatusOr<Value> EvalSlice(const Expr& expr);
  absl::StatusOr<Value> EvalCall(const Expr& expr);
  absl::StatusOr<Value> EvalTest(const Expr& expr);
  absl::StatusOr<Value> EvalSign(const Expr& expr);
  absl::StatusOr<Value> EvalConcat(const Expr& expr);
  absl::StatusOr<Value> EvalCompare(const Expr& expr);
  absl::StatusOr<Value> EvalCondition(const Expr& expr);
  absl::StatusOr<Arguments> EvalArguments(const Expr& expr);
  absl::StatusOr<Value> EvalFilter(const Expr& expr, const Value* innermost);

  absl::Status AtLine(absl::Status status, int line);

  const Limits limits_;
  const std::function<std::time_t()> now_;
  std::map<std::string, Value> globals_;
  std::shared_ptr<Scope> scope_;
  std::string* out_ = nullptr;
  uint64_t steps_ = 0;
  uint64_t work_bytes_ = 0;
  int depth_ = 0;
  bool located_ = false;  // the error under way has its line, or needs none
  // Things that can hold one another in circles; emptied at the end.
  std::vector<std::shared_ptr<Namespace>> namespaces_;
  std::vector<std::shared_ptr<Scope>> closures_;
};

// operators.cc: + - * / // % ** of Python, and the slice of a text or list.
absl::StatusOr<Value> BinaryOperation(Renderer& renderer, const std::string& op, const Value& left,
                                      const Value& right);
absl::StatusOr<Value> Slice(Renderer& renderer, const Value& on, const Value& start,
                            const Value& stop, const Value& step);
absl::StatusOr<bool> Contains(const Value& container, const Value& item);

// methods.cc: whether values of this type have the method, and a call of it.
bool HasMethod(const Value& on, std::string_view name);
absl::StatusOr<Value> CallMethod(Renderer& renderer, const Value& on, const std::string& name,
                                 const Arguments& arguments);

// format.cc: `text % value` and text.format(…).
absl::StatusOr<Value> PercentFormat(Renderer& renderer, const std::string& format,
                                    const Value& value);
absl::StatusOr<Value> BraceFormat(Renderer& renderer, const std::string& format,
                                  const Arguments& arguments);

// functions.cc: range, dict, namespace, raise_exception, strftime_now.
void SetStandardFunctions(Renderer& renderer);

}  // namespace switchyard::gateway::jinja
