#include "services/tokenizer/tokenizer.h"

#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "services/base/text.h"
#include "services/base/utf8.h"
#include "services/tokenizer/stream_decoder.h"
#include "tests/unit/services/tokenizer/goldens.h"

namespace switchyard {
namespace {

using nlohmann::json;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr EncodeOptions kPlain{.add_special_tokens = false};

std::vector<int32_t> EncodeOrDie(const Tokenizer& tokenizer, const std::string& text,
                                 const EncodeOptions& options) {
  auto ids = tokenizer.Encode(text, options);
  EXPECT_TRUE(ids.ok()) << ids.status();
  return ids.ok() ? *ids : std::vector<int32_t>();
}

// Piece by piece: no piece may end inside a character, together they are the whole.
std::string Streamed(const Tokenizer& tokenizer, const std::vector<int32_t>& ids, bool skip) {
  StreamDecoder decoder(tokenizer, skip);
  std::string text;
  for (int32_t id : ids) {
    const std::string piece = decoder.Push(id);
    EXPECT_TRUE(IsValidUtf8(piece));
    text += piece;
  }
  return text + decoder.Flush();
}

void ExpectCase(const Tokenizer& tokenizer, const json& golden) {
  const auto ids = golden["ids"].get<std::vector<int32_t>>();
  const auto decoded = golden["decoded"].get<std::string>();
  if (golden.contains("text")) {
    const auto text = golden["text"].get<std::string>();
    EXPECT_EQ(EncodeOrDie(tokenizer, text, kPlain), ids) << text;
    if (golden.contains("ids_with_special")) {
      EXPECT_EQ(EncodeOrDie(tokenizer, text, {.add_special_tokens = true}),
                golden["ids_with_special"].get<std::vector<int32_t>>());
    }
  }
  EXPECT_EQ(tokenizer.Decode(ids, false), decoded);
  EXPECT_EQ(tokenizer.Decode(ids, true), golden.value("decoded_skip_special", decoded));
  EXPECT_EQ(Streamed(tokenizer, ids, false), decoded);
}

class PublishedTokenizer : public ::testing::TestWithParam<const char*> {};

TEST_P(PublishedTokenizer, EncodesAndDecodesEveryGolden) {
  const std::string name = GetParam();
  const Tokenizer& tokenizer = test::Published(name);
  const json golden = test::Golden("tokenizer-" + name + ".json");
  ASSERT_GT(golden["cases"].size(), 20u);
  for (const json& item : golden["cases"]) ExpectCase(tokenizer, item);

  const json random = test::Golden("tokenizer-random-" + name + ".json");
  ASSERT_EQ(random["cases"].size(), 400u);
  for (const json& item : random["cases"]) ExpectCase(tokenizer, item);
  for (const json& item : random["decode"]) ExpectCase(tokenizer, item);
}

INSTANTIATE_TEST_SUITE_P(, PublishedTokenizer, ::testing::Values("tiny-r1", "deepseek-v3", "qwen3"),
                         [](const auto& info) {
                           std::string name = info.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

TEST(TokenizerTest, EncodesAndDecodesTheShapesOfOtherFamilies) {
  const json golden = test::Golden("tokenizer-random-families.json");
  ASSERT_GE(golden["families"].size(), 14u);
  for (const json& family : golden["families"]) {
    SCOPED_TRACE(family["name"].get<std::string>());
    const auto tokenizer = test::LoadFromJson(family["tokenizer"].dump());
    ASSERT_NE(tokenizer, nullptr);
    for (const json& item : family["cases"]) ExpectCase(*tokenizer, item);
    for (const json& item : family["decode"]) ExpectCase(*tokenizer, item);
  }
}

TEST(TokenizerTest, LoadsADirectoryWithItsConfig) {
  auto loaded = Tokenizer::Load(test::SourceDir() + "/models/tiny-r1");
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  const Tokenizer& tokenizer = **loaded;
  EXPECT_EQ(tokenizer.bos_id(), 0);
  EXPECT_EQ(tokenizer.eos_id(), 1);
  EXPECT_EQ(tokenizer.model_max_length(), 4096);
  EXPECT_TRUE(tokenizer.add_bos_token());
  EXPECT_EQ(tokenizer.special_tokens().at("eos_token"), tokenizer.eos_token());
  ASSERT_NE(tokenizer.chat_template(), nullptr);
  EXPECT_THAT(*tokenizer.chat_template(), HasSubstr("add_generation_prompt"));
  EXPECT_EQ(tokenizer.chat_template("tool_use"), nullptr);
  // The post processor adds BOS already; the config must not add it twice.
  EXPECT_THAT(EncodeOrDie(tokenizer, "", {}), ElementsAre(0));
  const auto think = tokenizer.IdOf("<think>");
  ASSERT_TRUE(think.has_value());
  EXPECT_TRUE(tokenizer.IsAdded(*think));
  EXPECT_FALSE(tokenizer.IsSpecial(*think));
  EXPECT_TRUE(tokenizer.IsSpecial(0));
  EXPECT_EQ(tokenizer.TokenBytes(*think), "<think>");
  EXPECT_EQ(tokenizer.TokenBytes(EncodeOrDie(tokenizer, " ", kPlain)[0]), " ");
  EXPECT_EQ(tokenizer.TokenBytes(-1), "");
  EXPECT_EQ(tokenizer.TokenBytes(tokenizer.vocab_size()), "");
}

TEST(TokenizerTest, AddsTheBosThatOnlyTheConfigAsksFor) {
  const std::string directory = test::SourceDir() + "/tests/golden/tokenizers/deepseek-v3";
  auto tokenizer = Tokenizer::FromFiles(
      {.tokenizer_json = test::TokenizerJson("deepseek-v3"),
       .tokenizer_config_json = test::Slurp(directory + "/tokenizer_config.json"),
       .chat_template_jinja = "from a file"});
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_THAT(EncodeOrDie(**tokenizer, "", {}), ElementsAre(0));
  EXPECT_THAT(EncodeOrDie(**tokenizer, "", kPlain), ElementsAre());
  EXPECT_EQ(*(*tokenizer)->chat_template(), "from a file");
}

TEST(TokenizerTest, ReplacesWhatIsNoUtf8) {
  const Tokenizer& tokenizer = test::Published("tiny-r1");
  const auto decoded = [&](const std::string& text) {
    return tokenizer.Decode(EncodeOrDie(tokenizer, text, kPlain), false);
  };
  EXPECT_EQ(decoded("a\xFFz"), "a\uFFFDz");
  EXPECT_EQ(decoded("a\xE4\xBDz\xE4"), "a\uFFFDz\uFFFD");
  EXPECT_EQ(decoded("\xED\xA0\x80"), "\uFFFD\uFFFD\uFFFD");
  EXPECT_EQ(decoded(std::string("a\0b", 3)), std::string("a\0b", 3));
}

TEST(TokenizerTest, HoldsAnIncompleteCharacterBack) {
  const Tokenizer& tokenizer = test::Published("tiny-r1");
  const auto ids = EncodeOrDie(tokenizer, "🫠", kPlain);
  ASSERT_GT(ids.size(), 1u) << "the character must take several tokens for this test";
  StreamDecoder decoder(tokenizer, false);
  for (size_t i = 0; i + 1 < ids.size(); ++i) EXPECT_EQ(decoder.Push(ids[i]), "");
  EXPECT_EQ(decoder.Push(ids.back()), "🫠");
  EXPECT_EQ(decoder.Push(ids[0]), "");
  EXPECT_EQ(decoder.Flush(), "\uFFFD");
}

TEST(TokenizerTest, BoundsItsWorkOnHostileTexts) {
  const Tokenizer& tokenizer = test::Published("deepseek-v3");
  for (const std::string unit : {"a", " ", "\n", "<", "1", "中", "ab ", " \n", "!", "<｜"}) {
    std::string text;
    while (text.size() < 300'000) text += unit;
    const auto ids = EncodeOrDie(tokenizer, text, kPlain);
    EXPECT_EQ(tokenizer.Decode(ids, false), text) << unit;
  }
}

TEST(TokenizerTest, APatternThatRunsAwayIsAnError) {
  json spec = test::Golden("tokenizer-random-families.json")["families"][0]["tokenizer"];
  spec["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "(a*)*[bd]";
  const auto tokenizer = test::LoadFromJson(spec.dump());
  ASSERT_NE(tokenizer, nullptr);
  const auto ids = tokenizer->Encode(std::string(3000, 'a') + "c", kPlain);
  EXPECT_EQ(ids.status().code(), absl::StatusCode::kInvalidArgument) << ids.status();
  EXPECT_THAT(std::string(ToStd(ids.status().message())), HasSubstr("(a*)*[bd]"));
}

TEST(TokenizerTest, ThreadsAgree) {
  const Tokenizer& tokenizer = test::Published("tiny-r1");
  const json golden = test::Golden("tokenizer-random-tiny-r1.json");
  std::vector<std::jthread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (size_t i = t; i < golden["cases"].size(); ++i) ExpectCase(tokenizer, golden["cases"][i]);
    });
  }
}

// What a broken or unsupported file is told.
struct Broken {
  const char* name;
  const char* patch;  // JSON patch onto the o200k-like tokenizer
  const char* message;
};

class BrokenTokenizer : public ::testing::TestWithParam<Broken> {};

TEST_P(BrokenTokenizer, IsRefusedByName) {
  json spec = test::Golden("tokenizer-random-families.json")["families"][0]["tokenizer"];
  spec = spec.patch(json::parse(GetParam().patch));
  const auto tokenizer = Tokenizer::FromFiles({.tokenizer_json = spec.dump()});
  ASSERT_FALSE(tokenizer.ok());
  EXPECT_THAT(std::string(ToStd(tokenizer.status().message())), HasSubstr(GetParam().message));
}

INSTANTIATE_TEST_SUITE_P(
    , BrokenTokenizer,
    ::testing::Values(
        Broken{"Unigram", R"([{"op":"replace","path":"/model/type","value":"Unigram"}])",
               "model.type is \"Unigram\""},
        Broken{"Normalizer",
               R"([{"op":"replace","path":"/normalizer","value":{"type":"BertNormalizer"}}])",
               "normalizer.type \"BertNormalizer\""},
        Broken{"PreTokenizer",
               R"([{"op":"replace","path":"/pre_tokenizer","value":{"type":"Whitespace"}}])",
               "pre_tokenizer.type \"Whitespace\""},
        Broken{"Decoder", R"([{"op":"replace","path":"/decoder","value":{"type":"CTC"}}])",
               "decoder.type \"CTC\""},
        Broken{"PostProcessor",
               R"([{"op":"replace","path":"/post_processor","value":{"type":"BertProcessing"}}])",
               "post_processor.type \"BertProcessing\""},
        Broken{
            "SetOperation",
            R"([{"op":"replace","path":"/pre_tokenizer/pretokenizers/0/pattern","value":{"Regex":"[a&&b]"}}])",
            "&& in a set"},
        Broken{
            "BadPattern",
            R"([{"op":"replace","path":"/pre_tokenizer/pretokenizers/0/pattern","value":{"Regex":"("}}])",
            "pattern \"(\""},
        Broken{"NoVocab", R"([{"op":"remove","path":"/model/vocab"}])", "model.vocab is missing"},
        Broken{"TakenId", R"([{"op":"replace","path":"/model/vocab/a","value":1}])",
               "id 1 belongs"},
        Broken{"NegativeId", R"([{"op":"replace","path":"/model/vocab/a","value":-1}])",
               "model.vocab: a"},
        Broken{"FarId", R"([{"op":"replace","path":"/model/vocab/a","value":16777215}])",
               "\"a\" has id 16777215"},
        Broken{"Merge", R"([{"op":"add","path":"/model/merges/0","value":["a","nowhere"]}])",
               "\"nowhere\" is not in the vocabulary"},
        Broken{"Added",
               R"([{"op":"add","path":"/added_tokens/0","value":{"id":3,"content":"<x>"}}])",
               "id 3 belongs"}),
    [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace switchyard
