// Chat templates from outside: compile or are refused, render or fail within their bounds.
#include <cstddef>
#include <cstdint>
#include <map>
#include <string_view>

#include "gateway/prompt/jinja/template.h"
#include "nlohmann/json.hpp"
#include "services/base/check.h"

namespace {

using switchyard::gateway::jinja::Value;

std::map<std::string, Value> Variables() {
  const auto json = nlohmann::ordered_json::parse(R"({
    "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "你好 <b>"},
                 {"role": "assistant", "content": null, "tool_calls": [{"id": "c1", "type": "function",
                  "function": {"name": "f", "arguments": {"a": 1.5}}}]},
                 {"role": "tool", "content": "x"}],
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
    "add_generation_prompt": true, "bos_token": "<s>", "eos_token": "</s>", "n": 3})");
  std::map<std::string, Value> variables;
  for (const auto& item : json.items()) {
    auto value = switchyard::gateway::jinja::FromJson(item.value());
    SY_CHECK(value.ok());
    variables[item.key()] = *value;
  }
  return variables;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace switchyard::gateway::jinja;
  static const auto& variables = *new std::map<std::string, Value>(Variables());
  const auto compiled =
      Template::Compile(std::string_view(reinterpret_cast<const char*>(data), size));
  if (!compiled.ok()) return 0;
  // Smaller than what serves, so that no input takes the fuzzer's time or memory.
  const Limits limits{.output_bytes_max = 1 << 20, .work_bytes_max = 16 << 20, .steps_max = 50'000};
  const auto text = (*compiled)->Render(
      variables, [] { return std::time_t{1'700'000'000}; }, limits);
  SY_CHECK(!text.ok() || text->size() <= limits.output_bytes_max);
  return 0;
}
