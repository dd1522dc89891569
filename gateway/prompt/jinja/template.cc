#include "gateway/prompt/jinja/template.h"

#include <utility>

#include "gateway/prompt/jinja/parser.h"
#include "services/base/status.h"

namespace switchyard::gateway::jinja {

absl::StatusOr<std::unique_ptr<Template>> Template::Compile(std::string_view source) {
  SY_ASSIGN_OR_RETURN(Body body, Parse(source));
  return std::unique_ptr<Template>(new Template(std::move(body)));
}

absl::StatusOr<std::string> Template::Render(const std::map<std::string, Value>& variables,
                                             const std::function<std::time_t()>& now,
                                             const Limits& limits) const {
  Renderer renderer(limits, now);
  SetStandardFunctions(renderer);
  for (const auto& [name, value] : variables) renderer.SetGlobal(name, value);
  return renderer.Run(body_);
}

}  // namespace switchyard::gateway::jinja
