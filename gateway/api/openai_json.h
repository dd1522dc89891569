// OpenAI's JSON to the messages of inference.proto. Pure; ranges are checked later, by the pipeline
// that both fronts share, types here. Unknown fields are ignored; fields that are known and ask for
// something that is not supported are INVALID_ARGUMENT with the field's name.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "switchyard/v1/inference.pb.h"

namespace switchyard::gateway {

struct ApiCall {
  bool chat = false;
  std::vector<v1::GenerateRequest> requests;  // one a prompt; chats have one
  bool stream = false;
  bool include_usage = false;  // stream_options
};

inline constexpr int kPromptsMax = 256;

absl::StatusOr<ApiCall> ParseChatCall(std::string_view body);
absl::StatusOr<ApiCall> ParseCompletionCall(std::string_view body);
absl::StatusOr<v1::TokenizeRequest> ParseTokenizeCall(std::string_view body);
absl::StatusOr<v1::DetokenizeRequest> ParseDetokenizeCall(std::string_view body);

}  // namespace switchyard::gateway
