#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <limits>
#include <random>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "services/base/text.h"
#include "services/base/utf8.h"
#include "tests/support/gguf_writer.h"
#include "tests/unit/services/tokenizer/goldens.h"

namespace switchyard {
namespace {

using nlohmann::json;
using test::GgufWriter;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr EncodeOptions kPlain{.add_special_tokens = false};
enum Kind { kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4, kUnused = 5, kByte = 6 };

// The vocabulary of a tokenizer.json as a GGUF lists it, padded by unused tokens.
struct Listed {
  std::vector<std::string> tokens;
  std::vector<int32_t> kinds;
};

Listed ListOf(const json& tokenizer) {
  Listed out;
  const auto set = [&out](size_t id, const std::string& content, int kind) {
    if (id >= out.tokens.size()) {
      out.tokens.resize(id + 1, "[PAD]");
      out.kinds.resize(id + 1, kUnused);
    }
    out.tokens[id] = content;
    out.kinds[id] = kind;
  };
  const bool bytes = tokenizer["model"].value("byte_fallback", false);
  for (const auto& [content, id] : tokenizer["model"]["vocab"].items()) {
    set(id, content, bytes && content.starts_with("<0x") ? kByte : kNormal);
  }
  for (const json& token : tokenizer["added_tokens"]) {
    const std::string content = token["content"];
    const bool unknown = tokenizer["model"].value("unk_token", json()) == token["content"];
    set(token["id"], content,
        unknown                        ? kUnknown
        : token["special"].get<bool>() ? kControl
                                       : kUserDefined);
  }
  set(out.tokens.size() + 3, "[PAD]", kUnused);
  return out;
}

std::vector<std::string> MergesOf(const json& tokenizer) {
  std::vector<std::string> merges;
  for (const json& merge : tokenizer["model"]["merges"]) {
    merges.push_back(merge.is_string()
                         ? merge.get<std::string>()
                         : merge[0].get<std::string>() + " " + merge[1].get<std::string>());
  }
  return merges;
}

GgufWriter Gpt2(const json& tokenizer, const char* pre) {
  const Listed listed = ListOf(tokenizer);
  return GgufWriter()
      .String("tokenizer.ggml.model", "gpt2")
      .String("tokenizer.ggml.pre", pre)
      .Strings("tokenizer.ggml.tokens", listed.tokens)
      .Numbers("tokenizer.ggml.token_type", 5, listed.kinds)
      .Strings("tokenizer.ggml.merges", MergesOf(tokenizer));
}

absl::StatusOr<std::unique_ptr<Tokenizer>> Load(const GgufWriter& writer) {
  const std::string path =
      ::testing::TempDir() + "/tokenizer." + std::to_string(::getpid()) + ".gguf";
  std::ofstream(path, std::ios::binary) << writer.Bytes();
  auto tokenizer = Tokenizer::Load(path);
  std::filesystem::remove(path);
  return tokenizer;
}

std::string Problem(const GgufWriter& writer) {
  return std::string(ToStd(Load(writer).status().message()));
}

void ExpectCases(const Tokenizer& tokenizer, const json& cases) {
  for (const json& item : cases) {
    const auto ids = item["ids"].get<std::vector<int32_t>>();
    if (item.contains("text")) {
      const auto text = item["text"].get<std::string>();
      EXPECT_EQ(tokenizer.Encode(text, kPlain).value(), ids) << text;
    }
    EXPECT_EQ(tokenizer.Decode(ids, false), item["decoded"]);
    EXPECT_EQ(tokenizer.Decode(ids, true), item.value("decoded_skip_special", item["decoded"]));
  }
}

struct Published {
  const char* name;
  const char* pre;
};

class PublishedGguf : public ::testing::TestWithParam<Published> {};

TEST_P(PublishedGguf, EncodesAndDecodesAsFromTokenizerJson) {
  const std::string name = GetParam().name;
  const auto tokenizer = Load(Gpt2(json::parse(test::TokenizerJson(name)), GetParam().pre));
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  ExpectCases(**tokenizer, test::Golden("tokenizer-" + name + ".json")["cases"]);
  const json random = test::Golden("tokenizer-random-" + name + ".json");
  ExpectCases(**tokenizer, random["cases"]);
  ExpectCases(**tokenizer, random["decode"]);
}

// tiny-r1's tokenizer takes digits one by one, which is the same where no merge joins them.
INSTANTIATE_TEST_SUITE_P(, PublishedGguf,
                         ::testing::Values(Published{"deepseek-v3", "deepseek-v3"},
                                           Published{"qwen3", "qwen2"},
                                           Published{"tiny-r1", "deepseek-v3"}),
                         [](const auto& info) {
                           std::string name = info.param.name;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

// Without the added tokens that take spaces along, stand alone or are looked for in the normalised
// text: a GGUF says nothing of that.
json PlainOf(const json& cases) {
  json plain = json::array();
  for (const json& item : cases) {
    const std::string text = item["text"];
    bool awkward = false;
    for (const char* token : {"<left>", "<right>", "<both>", "word", "é", "e\u0301"}) {
      awkward = awkward || text.find(token) != std::string::npos;
    }
    if (!awkward) plain.push_back(item);
  }
  EXPECT_GT(plain.size(), 10u);
  return plain;
}

TEST(GgufTokenizer, EncodesTheShapesOfOtherFamilies) {
  const json golden = test::Golden("tokenizer-random-families.json");
  int found = 0;
  for (const json& family : golden["families"]) {
    const char* pre = family["name"] == "neox" ? "olmo" : family["name"] == "o200k" ? "gpt-4o" : "";
    if (*pre == '\0') continue;
    ++found;
    SCOPED_TRACE(pre);
    const auto tokenizer = Load(Gpt2(family["tokenizer"], pre));
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    ExpectCases(**tokenizer, PlainOf(family["cases"]));
    ExpectCases(**tokenizer, family["decode"]);
  }
  EXPECT_EQ(found, 2);
}

TEST(GgufTokenizer, EveryPreThatIsKnownLoads) {
  const json tokenizer = json::parse(test::TokenizerJson("tiny-r1"));
  for (const char* pre :
       {"deepseek-v3", "deepseek-llm", "qwen2", "gpt-4o", "olmo", "gpt-2", "llama-bpe"}) {
    const auto loaded = Load(Gpt2(tokenizer, pre));
    ASSERT_TRUE(loaded.ok()) << pre << ": " << loaded.status();
    const std::string text = "Grüße, 12 345!\n  naïve 你好 don't";
    EXPECT_EQ((*loaded)->Decode((*loaded)->Encode(text, kPlain).value(), false), text) << pre;
  }
}

// SentencePiece's own way: of all neighbours that make a token, the one of the highest score.
std::vector<int32_t> BestFirst(const std::vector<std::string>& tokens,
                               const std::vector<float>& scores, std::string_view text) {
  std::map<std::string, size_t> ids;
  for (size_t id = 0; id < tokens.size(); ++id) ids[tokens[id]] = id;
  std::vector<std::string> pieces;
  while (!text.empty()) {
    const size_t size = FirstUtf8(text).size;
    pieces.emplace_back(text.substr(0, size));
    text.remove_prefix(size);
  }
  while (true) {
    float best = -std::numeric_limits<float>::infinity();
    size_t at = pieces.size();
    for (size_t i = 0; i + 1 < pieces.size(); ++i) {
      const auto found = ids.find(pieces[i] + pieces[i + 1]);
      if (found == ids.end() || scores[found->second] <= best) continue;
      best = scores[found->second];
      at = i;
    }
    if (at == pieces.size()) break;
    pieces[at] += pieces[at + 1];
    pieces.erase(pieces.begin() + static_cast<std::ptrdiff_t>(at) + 1);
  }
  std::vector<int32_t> out;
  for (const std::string& piece : pieces) out.push_back(static_cast<int32_t>(ids.at(piece)));
  return out;
}

class SentencePieceGguf : public ::testing::Test {
 protected:
  SentencePieceGguf() {
    const json golden = test::Golden("tokenizer-random-families.json");
    for (const json& family : golden["families"]) {
      if (family["name"] == "mixtral") family_ = family;
    }
    listed_ = ListOf(family_["tokenizer"]);
    // No two the same, as SentencePiece trains them.
    for (size_t i = 0; i < listed_.tokens.size(); ++i) {
      scores_.push_back(-1e6f - static_cast<float>(i));
    }
    float rank = 0;
    for (const json& merge : family_["tokenizer"]["model"]["merges"]) {
      const std::string token = merge[0].get<std::string>() + merge[1].get<std::string>();
      const auto at = std::find(listed_.tokens.begin(), listed_.tokens.end(), token);
      scores_[static_cast<size_t>(at - listed_.tokens.begin())] = rank--;
    }
  }

  GgufWriter Writer() const {
    return GgufWriter()
        .String("tokenizer.ggml.model", "llama")
        .Strings("tokenizer.ggml.tokens", listed_.tokens)
        .Numbers("tokenizer.ggml.token_type", 5, listed_.kinds);
  }

  json family_;
  Listed listed_;
  std::vector<float> scores_;
};

TEST_F(SentencePieceGguf, MergesByScore) {
  const auto tokenizer = Load(Writer().Numbers("tokenizer.ggml.scores", 6, scores_));
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  for (const json& item : PlainOf(family_["cases"])) {
    const auto ids = (*tokenizer)->Encode(item["text"].get<std::string>(), kPlain).value();
    EXPECT_EQ((*tokenizer)->Decode(ids, false), item["decoded"]) << item["text"];
  }
  // The naive way knows neither bytes nor added tokens: texts out of the vocabulary's own pieces.
  std::mt19937 random(1);
  int compared = 0;
  for (int i = 0; i < 300; ++i) {
    std::string text;
    for (uint32_t pieces = 1 + random() % 6; pieces > 0; --pieces) {
      const std::string& piece = listed_.tokens[random() % listed_.tokens.size()];
      if (!piece.starts_with("<")) text += piece;
    }
    std::string spelt = text.empty() ? "" : "\u2581" + text;
    for (size_t at = text.find("\u2581"); at != std::string::npos; at = text.find("\u2581")) {
      text.replace(at, 3, " ");
    }
    bool known = !text.empty();
    for (std::string_view rest = spelt; !rest.empty() && known;) {
      const std::string c(rest.substr(0, FirstUtf8(rest).size));
      known = std::find(listed_.tokens.begin(), listed_.tokens.end(), c) != listed_.tokens.end();
      rest.remove_prefix(c.size());
    }
    if (!known) continue;
    const auto ids = (*tokenizer)->Encode(text, kPlain).value();
    if (std::ranges::any_of(ids, [&](int32_t id) { return (*tokenizer)->IsAdded(id); })) continue;
    EXPECT_EQ(ids, BestFirst(listed_.tokens, scores_, spelt)) << text;
    ++compared;
  }
  EXPECT_GT(compared, 100);
}

TEST_F(SentencePieceGguf, AddsBosAndASpaceUnlessToldOtherwise) {
  const auto writer = [&] { return Writer().Numbers("tokenizer.ggml.scores", 6, scores_); };
  const auto with = Load(writer().U32("tokenizer.ggml.bos_token_id", 1));
  ASSERT_TRUE(with.ok()) << with.status();
  EXPECT_TRUE((*with)->add_bos_token());
  EXPECT_EQ((*with)->bos_token(), listed_.tokens[1]);
  const auto without = Load(writer()
                                .Bool("tokenizer.ggml.add_bos_token", false)
                                .Bool("tokenizer.ggml.add_space_prefix", false));
  ASSERT_TRUE(without.ok()) << without.status();
  EXPECT_FALSE((*without)->add_bos_token());
  EXPECT_LT((*without)->Encode("a", kPlain)->size(), 2u);
  EXPECT_THAT(Problem(Writer()), HasSubstr("tokenizer.ggml.scores is missing"));
}

class SmallGguf : public ::testing::Test {
 protected:
  static GgufWriter Small() {
    return GgufWriter()
        .String("tokenizer.ggml.model", "gpt2")
        .Strings("tokenizer.ggml.tokens", {"a", "b", "ab", "<s>", "<think>", "[PAD5]"})
        .Numbers<int32_t>("tokenizer.ggml.token_type", 5,
                          {kNormal, kNormal, kNormal, kControl, kUserDefined, kUnused})
        .Strings("tokenizer.ggml.merges", {"a b"});
  }
};

TEST_F(SmallGguf, ReadsSpecialTokensAndTemplates) {
  const auto loaded = Load(Small()
                               .String("tokenizer.ggml.pre", "qwen2")
                               .U32("tokenizer.ggml.bos_token_id", 3)
                               .U32("tokenizer.ggml.eos_token_id", 3)
                               .Bool("tokenizer.ggml.add_bos_token", true)
                               .String("tokenizer.chat_template", "default text")
                               .String("tokenizer.chat_template.tool_use", "other text"));
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  const Tokenizer& t = **loaded;
  EXPECT_THAT(t.Encode("ab<think>b").value(), ElementsAre(3, 2, 4, 1));
  EXPECT_TRUE(t.IsSpecial(3));
  EXPECT_TRUE(t.IsAdded(4));
  EXPECT_FALSE(t.IsSpecial(4));
  EXPECT_FALSE(t.IsKnown(5));
  EXPECT_EQ(t.eos_id(), 3);
  EXPECT_EQ(*t.chat_template(), "default text");
  EXPECT_EQ(*t.chat_template("tool_use"), "other text");
}

TEST_F(SmallGguf, AWholeTokenizerJsonCountsMore) {
  const auto loaded =
      Load(Small().String("tokenizer.huggingface.json", test::TokenizerJson("tiny-r1")));
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ((*loaded)->vocab_size(), 2560);
}

TEST_F(SmallGguf, NamesWhatIsWrong) {
  EXPECT_THAT(Problem(Small()), HasSubstr("tokenizer.ggml.pre is \"\"; supported: deepseek-v3"));
  EXPECT_THAT(Problem(Small().String("tokenizer.ggml.pre", "tekken")), HasSubstr("tekken"));
  EXPECT_THAT(Problem(GgufWriter()), HasSubstr("tokenizer.ggml.tokens is missing"));
  const auto with = [](const char* model) {
    return GgufWriter()
        .String("tokenizer.ggml.model", model)
        .Strings("tokenizer.ggml.tokens", {"a"});
  };
  EXPECT_THAT(Problem(with("bert")), HasSubstr("\"bert\"; supported: gpt2, llama"));
  EXPECT_THAT(Problem(with("gpt2").String("tokenizer.ggml.pre", "qwen2")),
              HasSubstr("tokenizer.ggml.merges is missing"));
  EXPECT_THAT(Problem(with("gpt2").Numbers<int32_t>("tokenizer.ggml.token_type", 5, {9})),
              HasSubstr("token_type[0] is 9"));
  EXPECT_THAT(Problem(with("gpt2").Numbers<int32_t>("tokenizer.ggml.token_type", 5, {1, 1})),
              HasSubstr("list of 1 values"));
  EXPECT_THAT(Problem(Small().Bool("tokenizer.ggml.add_eos_token", true)),
              HasSubstr("add_eos_token is true"));
}

}  // namespace
}  // namespace switchyard
