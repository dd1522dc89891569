#include <utility>

#include "gateway/prompt/jinja/renderer.h"
#include "gateway/prompt/jinja/renderer_step.h"
#include "services/base/status.h"

namespace switchyard::gateway::jinja {

Renderer::Renderer(const Limits& limits, std::function<std::time_t()> now)
    : limits_(limits), now_(std::move(now)), scope_(std::make_shared<Scope>()) {}

Renderer::~Renderer() {
  for (const auto& ns : namespaces_) {
    // Values leave one by one: what they hold may only be held here.
    ns->attributes = Dict();
    ns->loop.reset();
  }
  for (const auto& closure : closures_) closure->variables.clear();
}

void Renderer::SetGlobal(const std::string& name, Value value) {
  globals_[name] = std::move(value);
}

absl::StatusOr<std::string> Renderer::Run(const Body& body) {
  std::string out;
  out_ = &out;
  const auto flow = Exec(body);
  out_ = nullptr;
  if (!flow.ok()) return flow.status();
  return out;
}

absl::Status Renderer::AtLine(absl::Status status, int line) {
  if (status.ok() || located_) return status;
  located_ = true;
  return Annotate(status, fmt::format("line {}", line));
}

absl::Status Renderer::Raise(const std::string& message) {
  located_ = true;
  return InvalidArgument("{}", message);
}

absl::Status Renderer::Charge(uint64_t bytes) {
  work_bytes_ += bytes;
  if (work_bytes_ <= limits_.work_bytes_max) return absl::OkStatus();
  return ResourceExhausted("rendering takes more than {} bytes", limits_.work_bytes_max);
}

absl::StatusOr<Value> Renderer::Text(std::string text) {
  if (text.size() > limits_.output_bytes_max) {
    return ResourceExhausted("a text is longer than {} bytes", limits_.output_bytes_max);
  }
  SY_RETURN_IF_ERROR(Charge(text.size()));
  return Value(std::move(text));
}

absl::StatusOr<std::string> Renderer::ToText(const Value& value) const {
  return jinja::ToText(value, limits_.output_bytes_max);
}

absl::StatusOr<std::string> Renderer::ToJson(const Value& value, const JsonStyle& style) const {
  return jinja::ToJson(value, style, limits_.output_bytes_max);
}

absl::Status Renderer::Write(std::string_view text) {
  if (out_->size() + text.size() > limits_.output_bytes_max) {
    return ResourceExhausted("the output is longer than {} bytes", limits_.output_bytes_max);
  }
  out_->append(text);
  return absl::OkStatus();
}

absl::StatusOr<Value> Renderer::MakeNamespace(Dict attributes) {
  SY_RETURN_IF_ERROR(Charge(sizeof(Namespace)));
  auto ns = std::make_shared<Namespace>();
  ns->attributes = std::move(attributes);
  namespaces_.push_back(ns);
  return Value(std::move(ns));
}

void Renderer::SetVariable(const std::string& name, Value value) {
  for (auto& [known, old] : scope_->variables) {
    if (known == name) {
      old = std::move(value);
      return;
    }
  }
  scope_->variables.emplace_back(name, std::move(value));
}

const Value* Renderer::FindVariable(const std::string& name) const {
  for (const Scope* scope = scope_.get(); scope != nullptr; scope = scope->parent.get()) {
    for (const auto& [known, value] : scope->variables) {
      if (known == name) return &value;
    }
  }
  const auto global = globals_.find(name);
  return global == globals_.end() ? nullptr : &global->second;
}

absl::StatusOr<Renderer::Flow> Renderer::Exec(const Body& body) {
  for (const auto& statement : body) {
    Step step(this);
    auto flow = step.status().ok() ? ExecOne(*statement) : step.status();
    if (!flow.ok()) return AtLine(flow.status(), statement->line);
    if (*flow != Flow::kNext) return flow;
  }
  return Flow::kNext;
}

absl::StatusOr<Renderer::Flow> Renderer::ExecOne(const Stmt& statement) {
  absl::Status status = absl::OkStatus();
  switch (statement.kind) {
    case StmtKind::kText:
      status = Write(statement.text);
      break;
    case StmtKind::kOutput:
      status = ExecOutput(statement);
      break;
    case StmtKind::kIf:
      return ExecIf(statement);
    case StmtKind::kFor:
      return ExecFor(statement);
    case StmtKind::kSet:
      status = ExecSet(statement);
      break;
    case StmtKind::kSetBlock:
      status = ExecSetBlock(statement);
      break;
    case StmtKind::kMacro:
      SetVariable(statement.name, MakeMacro(statement, statement.name));
      break;
    case StmtKind::kCall:
      status = ExecCall(statement);
      break;
    case StmtKind::kFilter:
      status = ExecFilterBlock(statement);
      break;
    case StmtKind::kWith:
      return ExecWith(statement);
    case StmtKind::kScope:
      return ExecScoped(statement.body);
    case StmtKind::kBreak:
      return Flow::kBreak;
    case StmtKind::kContinue:
      return Flow::kContinue;
  }
  if (!status.ok()) return status;
  return Flow::kNext;
}

absl::Status Renderer::ExecOutput(const Stmt& statement) {
  SY_ASSIGN_OR_RETURN(const Value value, Eval(*statement.expr));
  if (value.IsString()) return Write(value.str());
  SY_ASSIGN_OR_RETURN(const std::string text, ToText(value));
  return Write(text);
}

absl::StatusOr<Renderer::Flow> Renderer::ExecIf(const Stmt& statement) {
  for (const auto& [condition, body] : statement.branches) {
    if (condition != nullptr) {
      SY_ASSIGN_OR_RETURN(const Value value, Eval(*condition));
      if (!value.Truthy()) continue;
    }
    return Exec(body);
  }
  return Flow::kNext;
}

absl::StatusOr<Renderer::Flow> Renderer::ExecScoped(const Body& body) {
  Push();
  auto flow = Exec(body);
  Pop();
  return flow;
}

// What the loop runs over, with its `if` applied.
absl::StatusOr<Values> Renderer::LoopItems(const Stmt& statement) {
  SY_ASSIGN_OR_RETURN(const Value list, Eval(*statement.expr));
  SY_ASSIGN_OR_RETURN(Values items, Items(list));
  if (statement.condition == nullptr) return items;
  Values kept;
  for (Value& item : items) {
    Push();
    absl::Status status = Assign(statement.targets[0], item);
    absl::StatusOr<Value> wanted = status.ok() ? Eval(*statement.condition) : status;
    Pop();
    if (!wanted.ok()) return wanted.status();
    if (wanted->Truthy()) kept.push_back(std::move(item));
  }
  return kept;
}

absl::StatusOr<Renderer::Flow> Renderer::ExecFor(const Stmt& statement) {
  SY_ASSIGN_OR_RETURN(Values items, LoopItems(statement));
  if (items.empty()) return ExecScoped(statement.otherwise);
  SY_ASSIGN_OR_RETURN(const Value list, MakeList(std::move(items)));
  SY_ASSIGN_OR_RETURN(const Value loop, MakeNamespace(Dict()));
  loop.ns().loop = std::make_unique<LoopState>();
  LoopState& state = *loop.ns().loop;
  state.items = list;
  absl::StatusOr<Flow> flow = Flow::kNext;
  for (size_t i = 0; i < list.list().items.size(); ++i) {
    state.index = i;
    const Step step(this);
    if (!step.status().ok()) {
      flow = step.status();
      break;
    }
    Push();
    SetVariable("loop", loop);
    const absl::Status assigned = Assign(statement.targets[0], list.list().items[i]);
    flow = assigned.ok() ? Exec(statement.body) : absl::StatusOr<Flow>(assigned);
    Pop();
    if (!flow.ok() || *flow == Flow::kBreak) break;
  }
  if (!flow.ok()) return flow;
  return Flow::kNext;
}

absl::Status Renderer::Assign(const Target& target, const Value& value) {
  if (!target.parts.empty()) {
    SY_ASSIGN_OR_RETURN(const Values items, Items(value));
    if (items.size() != target.parts.size()) {
      return InvalidArgument("{} values to unpack, {} expected", items.size(), target.parts.size());
    }
    for (size_t i = 0; i < items.size(); ++i) {
      SY_RETURN_IF_ERROR(Assign(target.parts[i], items[i]));
    }
    return absl::OkStatus();
  }
  if (target.attribute.empty()) {
    SetVariable(target.name, value);
    return absl::OkStatus();
  }
  const Value* ns = FindVariable(target.name);
  if (ns == nullptr || !ns->IsNamespace() || ns->ns().loop != nullptr) {
    return InvalidArgument("cannot assign attribute on non-namespace object '{}'", target.name);
  }
  return ns->ns().attributes.Set(target.attribute, value);
}

absl::Status Renderer::ExecSet(const Stmt& statement) {
  SY_ASSIGN_OR_RETURN(const Value value, Eval(*statement.expr));
  return Assign(statement.targets[0], value);
}

absl::StatusOr<std::string> Renderer::Captured(const Body& body) {
  std::string text;
  std::string* const outer = std::exchange(out_, &text);
  const auto flow = ExecScoped(body);
  out_ = outer;
  if (!flow.ok()) return flow.status();
  return text;
}

absl::Status Renderer::ExecSetBlock(const Stmt& statement) {
  SY_ASSIGN_OR_RETURN(std::string text, Captured(statement.body));
  SY_ASSIGN_OR_RETURN(Value value, Text(std::move(text)));
  if (statement.filter != nullptr) {
    SY_ASSIGN_OR_RETURN(value, EvalFilter(*statement.filter, &value));
  }
  return Assign(statement.targets[0], value);
}

absl::Status Renderer::ExecFilterBlock(const Stmt& statement) {
  SY_ASSIGN_OR_RETURN(std::string text, Captured(statement.body));
  SY_ASSIGN_OR_RETURN(const Value inner, Text(std::move(text)));
  SY_ASSIGN_OR_RETURN(const Value value, EvalFilter(*statement.filter, &inner));
  SY_ASSIGN_OR_RETURN(const std::string shown, ToText(value));
  return Write(shown);
}

absl::StatusOr<Renderer::Flow> Renderer::ExecWith(const Stmt& statement) {
  Values values;  // evaluated outside of the new scope
  for (const ExprPtr& expr : statement.values) {
    SY_ASSIGN_OR_RETURN(Value value, Eval(*expr));
    values.push_back(std::move(value));
  }
  Push();
  absl::StatusOr<Flow> flow = Flow::kNext;
  for (size_t i = 0; i < values.size() && flow.ok(); ++i) {
    if (absl::Status status = Assign(statement.targets[i], values[i]); !status.ok()) flow = status;
  }
  if (flow.ok()) flow = Exec(statement.body);
  Pop();
  return flow;
}

absl::Status Renderer::ExecCall(const Stmt& statement) {
  const Expr& call = *statement.expr;
  SY_ASSIGN_OR_RETURN(const Value function, Eval(*call.args[0]));
  SY_ASSIGN_OR_RETURN(Arguments arguments, EvalArguments(call));
  arguments.named.emplace_back("caller", MakeMacro(statement, "caller"));
  SY_ASSIGN_OR_RETURN(const Value value, Call(function, arguments));
  SY_ASSIGN_OR_RETURN(const std::string text, ToText(value));
  return Write(text);
}

Value Renderer::MakeMacro(const Stmt& statement, const std::string& name) {
  closures_.push_back(scope_);
  auto callable = std::make_shared<Callable>();
  callable->name = name;
  callable->call = [&statement, name, closure = std::weak_ptr<Scope>(scope_)](
                       Renderer& renderer, const Arguments& arguments) -> absl::StatusOr<Value> {
    return renderer.CallMacro(statement, name, closure.lock(), arguments);
  };
  return Value(std::shared_ptr<const Callable>(std::move(callable)));
}

absl::StatusOr<Value> Renderer::CallMacro(const Stmt& statement, const std::string& name,
                                          const std::shared_ptr<Scope>& closure,
                                          const Arguments& arguments) {
  const auto& parameters = statement.parameters;
  if (arguments.positional.size() > parameters.size()) {
    return InvalidArgument("macro '{}' takes not more than {} argument(s)", name,
                           parameters.size());
  }
  const std::shared_ptr<Scope> outer = std::exchange(scope_, closure);
  Push();
  absl::Status status = absl::OkStatus();
  std::vector<bool> given(parameters.size(), false);
  for (size_t i = 0; i < arguments.positional.size(); ++i) {
    SetVariable(parameters[i].name, arguments.positional[i]);
    given[i] = true;
  }
  for (const auto& [key, value] : arguments.named) {
    bool known = key == "caller";
    for (size_t i = 0; i < parameters.size(); ++i) {
      if (parameters[i].name != key) continue;
      known = !given[i];
      given[i] = true;
    }
    if (!known) {
      status = InvalidArgument("macro '{}' takes no keyword argument '{}' here", name, key);
    }
    SetVariable(key, value);
  }
  for (size_t i = 0; i < parameters.size() && status.ok(); ++i) {
    if (given[i]) continue;
    absl::StatusOr<Value> value =
        parameters[i].fallback == nullptr
            ? MakeUndefined(fmt::format("parameter '{}' was not provided", parameters[i].name))
            : Eval(*parameters[i].fallback);
    status = value.status();
    if (value.ok()) SetVariable(parameters[i].name, *value);
  }
  absl::StatusOr<std::string> text = status.ok() ? Captured(statement.body) : status;
  scope_ = outer;
  if (!text.ok()) return text.status();
  return Text(std::move(*text));
}

}  // namespace switchyard::gateway::jinja
