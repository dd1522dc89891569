#include "gateway/prompt/chat_template.h"

#include <algorithm>
#include <cstdlib>
#include <ctime>
#include <fstream>
#include <iterator>
#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "services/base/text.h"

namespace switchyard::gateway {
namespace {

using ::testing::HasSubstr;

std::string GoldenDir() {
  const char* source = std::getenv("SWITCHYARD_SOURCE_DIR");
  return std::string(source == nullptr ? "." : source) + "/tests/golden/templates/";
}

PromptJson Golden(const std::string& name) {
  std::ifstream file(GoldenDir() + name + ".json");
  EXPECT_TRUE(file.good()) << name;
  return PromptJson::parse(
      std::string(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()));
}

ChatTemplateOptions Options(const PromptJson& golden) {
  setenv("TZ", "UTC", 1);
  tzset();
  const std::time_t now = golden["now"].get<std::time_t>();
  ChatTemplateOptions options{.now = [now] { return now; }};
  if (golden.contains("special_tokens")) {
    golden["special_tokens"].get_to(options.special_tokens);
  }
  return options;
}

// Output, the words of raise_exception, or some error.
void Expect(const absl::StatusOr<std::string>& result, const PromptJson& golden) {
  if (golden.contains("output")) {
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_EQ(*result, golden["output"].get<std::string>());
    return;
  }
  ASSERT_FALSE(result.ok()) << *result << "\nexpected: " << golden.dump();
  EXPECT_EQ(result.status().code(), absl::StatusCode::kInvalidArgument);
  const std::string message(ToStd(result.status().message()));
  if (golden.contains("raised")) {
    EXPECT_EQ(message, golden["raised"].get<std::string>());
  } else {
    EXPECT_THAT(message, HasSubstr("line ")) << golden["error"];
  }
}

class TemplateGolden : public ::testing::TestWithParam<const char*> {};

TEST_P(TemplateGolden, RendersAsJinja2) {
  const PromptJson golden = Golden(GetParam());
  const auto compiled =
      ChatTemplate::Compile(golden["template"].get<std::string>(), Options(golden));
  ASSERT_TRUE(compiled.ok()) << compiled.status();
  ASSERT_GE(golden["cases"].size(), 25u);
  for (const PromptJson& item : golden["cases"]) {
    SCOPED_TRACE(item["name"].get<std::string>());
    Expect((*compiled)->Render(item["messages"], item["tools"],
                               item["add_generation_prompt"].get<bool>(), item["extra"]),
           item);
  }
}

INSTANTIATE_TEST_SUITE_P(, TemplateGolden,
                         ::testing::Values("tiny-r1", "deepseek-v3", "qwen3", "mixtral-style",
                                           "olmoe-style", "gpt-oss-style"),
                         [](const auto& info) {
                           std::string name = info.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

TEST(ChatTemplateTest, SnippetsRenderAsJinja2) {
  const PromptJson golden = Golden("snippets");
  ASSERT_GE(golden["cases"].size(), 130u);
  for (const PromptJson& item : golden["cases"]) {
    const std::string text = item["template"].get<std::string>();
    SCOPED_TRACE(text);
    const auto compiled = ChatTemplate::Compile(text, Options(golden));
    if (!compiled.ok()) {
      Expect(compiled.status(), item);
      continue;
    }
    Expect((*compiled)->Render(PromptJson::array(), nullptr, true, golden["variables"]), item);
  }
}

absl::StatusOr<std::string> RenderText(std::string_view text) {
  auto compiled = ChatTemplate::Compile(text, {});
  if (!compiled.ok()) return compiled.status();
  return (*compiled)->Render(PromptJson::array(), nullptr, true, nullptr);
}

TEST(ChatTemplateTest, ErrorsNameTheLine) {
  const auto syntax = RenderText("a\nb\n{% if %}\n{% endif %}");
  EXPECT_THAT(std::string(ToStd(syntax.status().message())), HasSubstr("chat template: line 3"));
  const auto value = RenderText("a\n\n\n{{ missing.x }}");
  EXPECT_EQ(ToStd(value.status().message()), "line 4: 'missing' is undefined");
  const auto tag = RenderText("{% include 'x' %}");
  EXPECT_THAT(std::string(ToStd(tag.status().message())), HasSubstr("'include'"));
}

TEST(ChatTemplateTest, HostileTemplatesAreBounded) {
  for (const std::string text :
       {"{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x "
        "%}{% endfor %}",
        "{{ 'a' * 999999999 }}", "{{ [1] * 999999999 }}", "{{ 'a' | indent(1000) * 99999999 }}",
        "{% set ns = namespace(x=[]) %}{% for i in range(9999) %}{% set ns.x = [ns.x] %}{% endfor "
        "%}",
        "{% set ns = namespace(x=[]) %}{% for i in range(9999) %}{% set ns.x = [ns.x.index] %}{% "
        "endfor %}",
        "{% set ns = namespace(x=[1], y=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] "
        "%}{% set ns.y = [ns.y, ns.y] %}{% endfor %}{{ ns.x == ns.y }}",
        "{% set a = 'a' * 9999999 %}{% for i in range(99999) %}{% if a == a ~ '' %}{% endif %}{% "
        "endfor %}",
        "{% set a = range(99999) | list %}{% for i in a %}{{ -1 in a }}{% endfor %}",
        "{% set ns = namespace() %}{% set ns.x = ns %}{{ ns }}", "{{ '%999999999d' % 1 * 99999 }}",
        "{{ range(999999999) | list }}", "{{ ('a' * 9999999).replace('a', 'b' * 9999999) }}"}) {
    const auto result = RenderText(text);
    EXPECT_FALSE(result.ok()) << text;
  }
  for (const std::string part : {"(", "[", "not ", "-", "a.", "a if b else ", "1+"}) {
    std::string text = "{{ ";
    for (int i = 0; i < 20000; ++i) text += part;
    EXPECT_FALSE(RenderText(text + "a }}").ok()) << part;
  }
  std::string blocks;
  for (int i = 0; i < 5000; ++i) blocks += "{% if a %}";
  EXPECT_FALSE(RenderText(blocks).ok());
}

TEST(ChatTemplateTest, CirclesOfValuesAreFreed) {  // for the leak checker
  EXPECT_TRUE(RenderText("{% set ns = namespace() %}{% set ns.me = ns %}{% macro m() %}{{ m is "
                         "callable }}{% endmacro %}{% set ns.m = m %}{{ m() }}")
                  .ok());
}

TEST(ChatTemplateTest, DeepJsonIsRefused) {
  PromptJson deep = PromptJson::array();
  for (int i = 0; i < 300; ++i) deep = PromptJson::array({deep});
  const auto compiled = ChatTemplate::Compile("{{ messages }}", {});
  ASSERT_TRUE(compiled.ok());
  EXPECT_FALSE((*compiled)->Render(deep, nullptr, true, nullptr).ok());
}

TEST(ChatTemplateTest, ThreadsShareATemplate) {
  const PromptJson golden = Golden("qwen3");
  const auto compiled =
      ChatTemplate::Compile(golden["template"].get<std::string>(), Options(golden));
  ASSERT_TRUE(compiled.ok());
  std::vector<std::jthread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (const PromptJson& item : golden["cases"]) {
        Expect((*compiled)->Render(item["messages"], item["tools"],
                                   item["add_generation_prompt"].get<bool>(), item["extra"]),
               item);
      }
    });
  }
}

}  // namespace
}  // namespace switchyard::gateway
