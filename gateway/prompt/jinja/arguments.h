// Binds the arguments of a filter, test, method or function to its parameters.
#pragma once

#include <initializer_list>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "gateway/prompt/jinja/value.h"

namespace switchyard::gateway::jinja {

class BoundArguments {
 public:
  // INVALID_ARGUMENT, in the function's name, for an unknown or a surplus argument or for fewer
  // than `required`. The arguments outlive the result.
  static absl::StatusOr<BoundArguments> Bind(std::string_view function, const Arguments& arguments,
                                             std::initializer_list<std::string_view> parameters,
                                             size_t required = 0);

  // nullptr where it was not given.
  const Value* Get(size_t i) const { return values_[i]; }
  // Also nullptr where it was given as None.
  const Value* GetNotNone(size_t i) const {
    return values_[i] == nullptr || values_[i]->IsNone() ? nullptr : values_[i];
  }
  absl::StatusOr<int64_t> Int(size_t i, int64_t fallback) const;
  absl::StatusOr<std::string> Text(size_t i, std::string_view fallback) const;
  bool Bool(size_t i, bool fallback) const;

 private:
  std::string function_;
  std::vector<const Value*> values_;
};

}  // namespace switchyard::gateway::jinja
