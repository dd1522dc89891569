// What the tensors of a GGUF file are called in a Hugging Face checkpoint of the same model. Pure
// text; the spelling of both sides is as convert_hf_to_gguf.py of llama.cpp has it.
#pragma once

#include <string>
#include <string_view>

namespace switchyard::checkpoint {

struct HuggingFaceName {
  std::string name;  // the tensor's own where we know no other
  // The first dimension is that of the routed experts, each of which has a tensor of its own:
  // name + "0" + of_expert, name + "1" + of_expert, …
  bool stacked = false;
  std::string of_expert;
};

// `architecture` is general.architecture: deepseek2, qwen3moe, olmoe, llama or gpt-oss.
HuggingFaceName HuggingFaceNameOf(std::string_view architecture, std::string_view tensor);

// Why a tensor's presence means that the model cannot be computed from this file, "" if it does
// not.
std::string_view WhyUnsupported(std::string_view tensor);

}  // namespace switchyard::checkpoint
