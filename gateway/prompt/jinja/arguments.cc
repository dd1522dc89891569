#include "gateway/prompt/jinja/arguments.h"

#include <algorithm>

#include "services/base/status.h"

namespace switchyard::gateway::jinja {

absl::StatusOr<BoundArguments> BoundArguments::Bind(
    std::string_view function, const Arguments& arguments,
    std::initializer_list<std::string_view> parameters, size_t required) {
  BoundArguments bound;
  bound.function_ = function;
  bound.values_.resize(parameters.size(), nullptr);
  if (arguments.positional.size() > parameters.size()) {
    return InvalidArgument("{}: at most {} argument(s) expected, {} given", function,
                           parameters.size(), arguments.positional.size());
  }
  for (size_t i = 0; i < arguments.positional.size(); ++i) {
    bound.values_[i] = &arguments.positional[i];
  }
  for (const auto& [name, value] : arguments.named) {
    const size_t i = std::find(parameters.begin(), parameters.end(), name) - parameters.begin();
    if (i == parameters.size()) return InvalidArgument("{}: unknown argument '{}'", function, name);
    if (bound.values_[i] != nullptr) {
      return InvalidArgument("{}: argument '{}' is given twice", function, name);
    }
    bound.values_[i] = &value;
  }
  for (size_t i = 0; i < required; ++i) {
    if (bound.values_[i] == nullptr) {
      return InvalidArgument("{}: argument '{}' is missing", function, parameters.begin()[i]);
    }
  }
  return bound;
}

absl::StatusOr<int64_t> BoundArguments::Int(size_t i, int64_t fallback) const {
  if (values_[i] == nullptr) return fallback;
  if (values_[i]->IsInt() || values_[i]->IsBool()) return values_[i]->integer();
  return InvalidArgument("{}: an integer expected, not {}", function_, values_[i]->TypeName());
}

absl::StatusOr<std::string> BoundArguments::Text(size_t i, std::string_view fallback) const {
  if (values_[i] == nullptr) return std::string(fallback);
  if (values_[i]->IsString()) return values_[i]->str();
  return InvalidArgument("{}: a string expected, not {}", function_, values_[i]->TypeName());
}

bool BoundArguments::Bool(size_t i, bool fallback) const {
  return values_[i] == nullptr ? fallback : values_[i]->Truthy();
}

}  // namespace switchyard::gateway::jinja
