// Cuts a template into text and tokens, with the white-space rules that chat templates expect:
// trim_blocks and lstrip_blocks on, "-" and "+" at the tags, one trailing newline dropped.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace switchyard::gateway::jinja {

enum class TokenKind {
  kText,         // what stands between the tags
  kOutputBegin,  // {{
  kOutputEnd,    // }}
  kBlockBegin,   // {%
  kBlockEnd,     // %}
  kName,
  kString,
  kInteger,
  kFloat,
  kOperator,  // one of + - * / // % ** ~ == != < <= > >= = . , : | ( ) [ ] { } ;
  kEnd,
};

struct Token {
  TokenKind kind;
  std::string text;  // of a string: its content
  int line = 1;

  bool Is(TokenKind k, std::string_view t) const { return kind == k && text == t; }
};

// The last token is kEnd.
absl::StatusOr<std::vector<Token>> Tokenize(std::string_view source);

}  // namespace switchyard::gateway::jinja
