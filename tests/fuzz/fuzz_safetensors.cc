// A whole .safetensors file: the header's parser, the mapping of what it lists, the weight check
// and the digest. The file lies in memory and is opened through a link, as a checkpoint's files
// are.
#include <cstdint>
#include <string_view>

#include "services/checkpoint/header.h"
#include "services/checkpoint/shard_index.h"
#include "tests/fuzz/memory_file.h"

namespace switchyard::checkpoint {
void FuzzOne(const uint8_t* data, size_t size) {
  static fuzz::MemoryFile file("model.safetensors");
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  (void)ParseHeader(text, "fuzz", 8, 1 << 20);
  (void)ParseShardIndex(text, "fuzz");
  auto source = OpenSafetensors(file.Fill(data, size).parent_path().string());
  if (source.ok()) fuzz::UseAll(**source);
}

}  // namespace switchyard::checkpoint

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  switchyard::checkpoint::FuzzOne(data, size);
  return 0;
}
