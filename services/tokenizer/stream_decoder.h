// Turns a stream of token ids into text piece by piece. What Push returns never ends inside a
// character and never shows U+FFFD for bytes that later tokens can still complete; all pieces
// together equal Tokenizer::Decode of all ids. Holds back at most one incomplete character (with
// byte-fallback vocabularies: the current run of byte tokens). One stream, one thread.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "services/tokenizer/tokenizer.h"

namespace switchyard {

class StreamDecoder {
 public:
  // The tokenizer outlives the decoder.
  StreamDecoder(const Tokenizer& tokenizer, bool skip_special);

  // The text that this id completes; often empty.
  std::string Push(int32_t id);
  std::string Push(std::span<const int32_t> ids);

  // The rest, with U+FFFD for a character that never came whole. The stream can start anew after
  // it.
  std::string Flush();

 private:
  void Append(int32_t id, std::string* out);
  void EndByteRun(std::string* out);
  void AppendStripped(std::string_view text, std::string* out);

  const Tokenizer* tokenizer_;
  bool skip_special_;
  bool started_ = false;  // a token was seen: leading-space rules no longer apply
  int strip_left_ = 0;    // leading characters that the decoder still removes
  std::string pending_;   // an incomplete character, or a run of byte tokens
};

}  // namespace switchyard
