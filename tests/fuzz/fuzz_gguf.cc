// A whole .gguf file: its header, and what is made of it: the weights, the model's spec and the
// tokenizer.
#include <cstdint>
#include <string>

#include "services/model/spec_from_hf.h"
#include "services/tokenizer/tokenizer.h"
#include "tests/fuzz/memory_file.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace switchyard;
  static fuzz::MemoryFile file("model.gguf");
  const std::string path = file.Fill(data, size).string();
  auto source = checkpoint::OpenCheckpoint(path);
  if (source.ok()) fuzz::UseAll(**source);
  (void)LoadSpec(path);
  const auto tokenizer = Tokenizer::Load(path);
  if (tokenizer.ok()) (void)(*tokenizer)->Encode("a b\nc 12", {});
  return 0;
}
