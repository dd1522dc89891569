#include "tests/support/heldout.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <iostream>
#include <memory>

#include "nlohmann/json.hpp"

namespace switchyard::test {
namespace {

using Chunk = DecoderHarness::Chunk;

[[noreturn]] void Die(const std::string& path, const std::string& why) {
  std::cerr << path << ": " << why << "\n";
  std::abort();
}

std::vector<int32_t> Encode(const Tokenizer& tokenizer, const std::string& text,
                            const std::string& path) {
  auto ids = tokenizer.Encode(text, {.add_special_tokens = false});
  if (!ids.ok()) Die(path, std::string(ids.status().message()));
  return *std::move(ids);
}

double LogSumExp(const float* x, int64_t n) {
  const float greatest = *std::max_element(x, x + n);
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += std::exp(double{x[i]} - double{greatest});
  return greatest + std::log(sum);
}

// What stands after the reasoning.
std::string AnswerOf(const Tokenizer& tokenizer, std::span<const int32_t> completion) {
  const std::string text = tokenizer.Decode(completion, true);
  constexpr std::string_view kEnd = "</think>";
  const size_t end = text.find(kEnd);
  if (end == std::string::npos) return "";
  const size_t first = text.find_first_not_of(" \n", end + kEnd.size());
  if (first == std::string::npos) return "";
  return text.substr(first, text.find_last_not_of(" \n") - first + 1);
}

// One group of conversations, decoded greedily; returns how many were right.
int64_t DecodeGroup(const LoadedModel& model, const HarnessOptions& options,
                    std::span<const Conversation> group, const Tokenizer& tokenizer) {
  constexpr size_t kMost = 256;
  DecoderHarness harness(model, options);
  std::vector<DecoderHarness::Sequence> sequences(group.size());
  std::vector<std::vector<int32_t>> out(group.size());
  std::vector<size_t> open;
  for (size_t i = 0; i < group.size(); ++i) open.push_back(i);
  while (!open.empty()) {
    std::vector<Chunk> chunks;
    for (const size_t i : open) {
      const std::span<const int32_t> next =
          out[i].empty() ? std::span(group[i].prompt) : std::span(out[i]).last(1);
      chunks.push_back({.sequence = &sequences[i], .tokens = next});
    }
    const router::StepResult& result = harness.Step(chunks);
    const size_t vocab = static_cast<size_t>(model.spec.vocab);
    for (size_t row = 0; row < open.size(); ++row) {
      out[open[row]].push_back(ArgMax({result.logits + row * vocab, vocab}));
    }
    std::erase_if(open, [&](size_t i) {
      return out[i].size() >= kMost || std::ranges::count(model.spec.eos_ids, out[i].back()) > 0;
    });
  }
  int64_t right = 0;
  for (size_t i = 0; i < group.size(); ++i) {
    right += AnswerOf(tokenizer, out[i]) == AnswerOf(tokenizer, group[i].completion);
  }
  return right;
}

}  // namespace

std::vector<Conversation> LoadHeldout(const std::string& path, const Tokenizer& tokenizer) {
  std::ifstream in(path);
  if (!in) Die(path, "cannot be read");
  std::vector<Conversation> out;
  const nlohmann::json all = nlohmann::json::parse(in, nullptr, false);
  if (!all.is_array()) Die(path, "not a list in JSON");
  for (const nlohmann::json& c : all) {
    out.push_back({.family = c.at("family"),
                   .prompt = Encode(tokenizer, c.at("prompt"), path),
                   .completion = Encode(tokenizer, c.at("completion"), path)});
  }
  return out;
}

double Quality::experts() const {
  return counts.rows == 0 ? 0
                          : static_cast<double>(counts.experts) / static_cast<double>(counts.rows);
}

Quality MeasureQuality(const LoadedModel& model, const HarnessOptions& options,
                       const std::vector<Conversation>& heldout, size_t streams) {
  Quality out;
  const int64_t vocab = model.spec.vocab;
  double loss = 0;
  int64_t right = 0;
  for (size_t first = 0; first < heldout.size(); first += streams) {
    const size_t count = std::min(streams, heldout.size() - first);
    DecoderHarness harness(model, options);
    std::vector<DecoderHarness::Sequence> sequences(count);
    std::vector<Chunk> chunks;
    std::vector<int32_t> targets;
    for (size_t i = 0; i < count; ++i) {
      const Conversation& c = heldout[first + i];
      // The prompt's last token predicts the completion's first.
      chunks.push_back({.sequence = &sequences[i],
                        .tokens = std::span(c.prompt).first(c.prompt.size() - 1),
                        .wanted = Chunk::Logits::kNone});
      targets.insert(targets.end(), c.completion.begin(), c.completion.end());
    }
    std::vector<std::vector<int32_t>> inputs(count);
    for (size_t i = 0; i < count; ++i) {
      const Conversation& c = heldout[first + i];
      inputs[i] = {c.prompt.back()};
      inputs[i].insert(inputs[i].end(), c.completion.begin(), c.completion.end() - 1);
    }
    harness.Step(chunks);
    for (size_t i = 0; i < count; ++i) {
      chunks[i].tokens = inputs[i];
      chunks[i].wanted = Chunk::Logits::kAll;
    }
    const router::StepResult& result = harness.Step(chunks);
    for (size_t t = 0; t < targets.size(); ++t) {
      const float* logits = result.logits + static_cast<int64_t>(t) * vocab;
      loss += LogSumExp(logits, vocab) - double{logits[targets[t]]};
      right += ArgMax({logits, static_cast<size_t>(vocab)}) == targets[t];
    }
    out.tokens += static_cast<int64_t>(targets.size());
    if (const router::RoutingPolicy* policy = harness.decoder().routing()) {
      out.counts.Add(policy->counts());
    }
  }
  out.loss = loss / static_cast<double>(out.tokens);
  out.top1 = static_cast<double>(right) / static_cast<double>(out.tokens);
  return out;
}

double MeasureExact(const LoadedModel& model, const HarnessOptions& options,
                    const std::vector<Conversation>& heldout, size_t streams,
                    const Tokenizer& tokenizer) {
  int64_t right = 0;
  for (size_t first = 0; first < heldout.size(); first += streams) {
    const size_t count = std::min(streams, heldout.size() - first);
    right += DecodeGroup(model, options, std::span(heldout).subspan(first, count), tokenizer);
  }
  return static_cast<double>(right) / static_cast<double>(heldout.size());
}

}  // namespace switchyard::test
