// tokenizer.json from outside: loads or is refused; what loads encodes and decodes any text, and
// the stream decoder agrees with Decode. The input is a byte with the length of the text (in 16
// bytes), the text, then the JSON.
#include <cstddef>
#include <cstdint>
#include <string>

#include "services/base/check.h"
#include "services/base/utf8.h"
#include "services/tokenizer/stream_decoder.h"
#include "services/tokenizer/tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace switchyard;
  if (size == 0) return 0;
  const std::string_view input(reinterpret_cast<const char*>(data) + 1, size - 1);
  const std::string_view text = input.substr(0, size_t{data[0]} * 16);
  const std::string json(input.substr(text.size()));
  const auto tokenizer = Tokenizer::FromFiles({.tokenizer_json = json});
  if (!tokenizer.ok()) return 0;
  const auto ids = (*tokenizer)->Encode(text);
  if (!ids.ok()) return 0;
  const std::string decoded = (*tokenizer)->Decode(*ids, false);
  SY_CHECK(IsValidUtf8(decoded));
  StreamDecoder decoder(**tokenizer, false);
  std::string streamed;
  for (int32_t id : *ids) {
    const std::string piece = decoder.Push(id);
    SY_CHECK(IsValidUtf8(piece));
    streamed += piece;
  }
  SY_CHECK(streamed + decoder.Flush() == decoded);
  return 0;
}
