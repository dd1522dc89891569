// Where the goldens lie, and how to load a tokenizer of theirs.
#pragma once

#include <cstdlib>
#include <fstream>
#include <iterator>
#include <map>
#include <memory>
#include <string>

#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "services/base/check.h"
#include "services/tokenizer/tokenizer.h"

namespace switchyard::test {

inline std::string SourceDir() {
  const char* directory = std::getenv("SWITCHYARD_SOURCE_DIR");
  return directory == nullptr ? "." : directory;
}

inline std::string Slurp(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  EXPECT_TRUE(file.good()) << path;
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

inline nlohmann::json Golden(const std::string& name) {
  return nlohmann::json::parse(Slurp(SourceDir() + "/tests/golden/" + name));
}

// tokenizer.json of tiny-r1, deepseek-v3 or qwen3; the large ones are unpacked by the build.
inline std::string TokenizerJson(const std::string& name) {
  return Slurp(name == "tiny-r1" ? SourceDir() + "/models/tiny-r1/tokenizer.json"
                                 : std::string(SY_UNPACKED_TOKENIZERS) + "/" + name + ".json");
}

// Of tokenizer.json alone, or nothing after a failed expectation.
inline std::unique_ptr<Tokenizer> LoadFromJson(const std::string& json) {
  auto tokenizer = Tokenizer::FromFiles({.tokenizer_json = json});
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  return tokenizer.ok() ? std::move(*tokenizer) : nullptr;
}

// tiny-r1, deepseek-v3 or qwen3 of tokenizer.json alone, loaded once a process.
inline const Tokenizer& Published(const std::string& name) {
  static auto& loaded = *new std::map<std::string, std::unique_ptr<Tokenizer>>();
  auto& tokenizer = loaded[name];
  if (tokenizer == nullptr) tokenizer = LoadFromJson(TokenizerJson(name));
  SY_CHECK(tokenizer != nullptr);
  return *tokenizer;
}

}  // namespace switchyard::test
