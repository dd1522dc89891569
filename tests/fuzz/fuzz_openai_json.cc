// JSON bodies of the HTTP API: the first byte chooses the endpoint. What is accepted must hold text
// that is valid UTF-8 once written again.
#include <cstdint>
#include <string_view>

#include "gateway/api/json_text.h"
#include "gateway/api/openai_json.h"
#include "nlohmann/json.hpp"
#include "services/base/check.h"

namespace switchyard::gateway {
namespace {

void Use(const ApiCall& call) {
  SY_CHECK(!call.requests.empty() && call.requests.size() <= kPromptsMax);
  for (const v1::GenerateRequest& request : call.requests) {
    std::string text;
    AppendJsonString(request.DebugString(), &text);
    SY_CHECK(nlohmann::json::accept(text));
    std::string bytes;
    SY_CHECK(request.SerializeToString(&bytes));
  }
}

}  // namespace
}  // namespace switchyard::gateway

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace switchyard::gateway;
  if (size == 0) return 0;
  const std::string_view body(reinterpret_cast<const char*>(data) + 1, size - 1);
  std::string written;
  AppendJsonString(body, &written);
  SY_CHECK(nlohmann::json::accept(written));
  switch (data[0] % 4) {
    case 0:
      if (const auto call = ParseChatCall(body); call.ok()) Use(*call);
      break;
    case 1:
      if (const auto call = ParseCompletionCall(body); call.ok()) Use(*call);
      break;
    case 2:
      (void)ParseTokenizeCall(body);
      break;
    default:
      (void)ParseDetokenizeCall(body);
  }
  return 0;
}
