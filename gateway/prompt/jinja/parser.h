// Tokens → template. The grammar is Jinja2's; tags and constructs that chat templates have no use
// for (include, import, extends, block, …) are refused by name.
#pragma once

#include <string_view>

#include "absl/status/statusor.h"
#include "gateway/prompt/jinja/ast.h"

namespace switchyard::gateway::jinja {

// INVALID_ARGUMENT with the line.
absl::StatusOr<Body> Parse(std::string_view source);

// Filters and tests that exist; others are refused by the parser.
bool IsFilter(std::string_view name);
bool IsTest(std::string_view name);

}  // namespace switchyard::gateway::jinja
