// A compiled template of our Jinja2 subset. Immutable and thread-safe.
#pragma once

#include <ctime>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "gateway/prompt/jinja/ast.h"
#include "gateway/prompt/jinja/renderer.h"

namespace switchyard::gateway::jinja {

class Template {
 public:
  static absl::StatusOr<std::unique_ptr<Template>> Compile(std::string_view source);

  // now: what strftime_now reads. Errors as Renderer::Run has them.
  absl::StatusOr<std::string> Render(const std::map<std::string, Value>& variables,
                                     const std::function<std::time_t()>& now,
                                     const Limits& limits = {}) const;

 private:
  explicit Template(Body body) : body_(std::move(body)) {}

  const Body body_;
};

}  // namespace switchyard::gateway::jinja
