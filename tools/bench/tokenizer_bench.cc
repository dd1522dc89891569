// Speed of tokenising on one core: tokenizer_bench TOKENIZER_JSON TEXT_FILE…
// The texts are joined and encoded as a whole and in pieces of 4 KiB, the latter also with a fresh
// tokenizer, whose cache of pieces is empty.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <string>

#include "services/base/file.h"
#include "services/base/utf8.h"
#include "services/tokenizer/tokenizer.h"

namespace switchyard {
namespace {

using Clock = std::chrono::steady_clock;

constexpr uint64_t kFileBytesMax = 256 << 20;

// Encodes all of the text in pieces and prints the rate.
bool Measure(const char* name, const Tokenizer& tokenizer, const std::string& text, size_t piece) {
  size_t tokens = 0;
  const auto begin = Clock::now();
  for (size_t at = 0; at < text.size();) {
    size_t end = std::min(text.size(), at + piece);
    end -= IncompleteSuffix(std::string_view(text).substr(at, end - at));
    const auto ids = tokenizer.Encode(std::string_view(text).substr(at, end - at));
    if (!ids.ok()) {
      std::fprintf(stderr, "%s\n", ids.status().ToString().c_str());
      return false;
    }
    tokens += ids->size();
    at = end;
  }
  const double seconds = std::chrono::duration<double>(Clock::now() - begin).count();
  std::printf("%-12s %8.2f MB/s  %10.0f tokens/s  %.2f bytes a token\n", name,
              text.size() / seconds / 1e6, tokens / seconds,
              static_cast<double>(text.size()) / tokens);
  return true;
}

int Run(int argc, char** argv) {
  if (argc < 3) {
    std::fprintf(stderr, "usage: tokenizer_bench TOKENIZER_JSON TEXT_FILE...\n");
    return 2;
  }
  TokenizerFiles files;
  std::string text;
  for (int i = 1; i < argc; ++i) {
    auto content = ReadFile(argv[i], kFileBytesMax);
    if (!content.ok()) {
      std::fprintf(stderr, "%s\n", content.status().ToString().c_str());
      return 1;
    }
    if (i == 1) {
      files.tokenizer_json = std::move(*content);
    } else {
      AppendLossy(*content, &text);
    }
  }
  const auto begin = Clock::now();
  const auto tokenizer = Tokenizer::FromFiles(files);
  if (!tokenizer.ok()) {
    std::fprintf(stderr, "%s\n", tokenizer.status().ToString().c_str());
    return 1;
  }
  std::printf("loaded in %.2f s; %.1f MB of text\n",
              std::chrono::duration<double>(Clock::now() - begin).count(), text.size() / 1e6);
  constexpr size_t kPiece = 4096;
  return Measure("4 KiB, cold", **tokenizer, text, kPiece) &&
                 Measure("4 KiB, warm", **tokenizer, text, kPiece) &&
                 Measure("whole", **tokenizer, text, text.size())
             ? 0
             : 1;
}

}  // namespace
}  // namespace switchyard

int main(int argc, char** argv) { return switchyard::Run(argc, argv); }
