#include "tests/support/golden.h"

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>

namespace switchyard::test {
namespace {

using nlohmann::json;

GoldenCase ReadCase(const json& in) {
  GoldenCase out;
  out.name = in.at("name");
  out.prompt_ids = in.at("prompt_ids").get<std::vector<int32_t>>();
  out.output_ids = in.at("output_ids").get<std::vector<int32_t>>();
  for (const json& top : in.at("top_logits")) {
    out.top_logits.push_back({.step = top.at("step"),
                              .ids = top.at("ids").get<std::vector<int32_t>>(),
                              .values = top.at("values").get<std::vector<float>>()});
  }
  if (in.contains("routing")) {
    const json& routing = in.at("routing");
    routing.at("layers").get_to(out.routing.layers);
    routing.at("experts").get_to(out.routing.experts);
    routing.at("weights").get_to(out.routing.weights);
  }
  return out;
}

}  // namespace

std::string SourcePath(const std::string& relative) {
  const char* root = std::getenv("SWITCHYARD_SOURCE_DIR");
  return root == nullptr ? relative : std::string(root) + "/" + relative;
}

std::vector<std::string> GoldenModelNames() {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(SourcePath("tests/golden"))) {
    const std::filesystem::path& path = entry.path();
    const bool tokenizer = path.filename().string().starts_with("tokenizer-");
    if (path.extension() == ".json" && !tokenizer) names.push_back(path.stem());
  }
  std::ranges::sort(names);
  return names;
}

GoldenModel LoadGolden(const std::string& name) {
  const std::string path = SourcePath("tests/golden/" + name + ".json");
  GoldenModel model{.name = name};
  model.directory = SourcePath("models/" + name);
  if (!std::filesystem::exists(model.directory)) {
    model.directory = SourcePath("tests/golden/models/" + name);
  }
  try {
    std::ifstream in(path);
    const json file = json::parse(in);
    for (const json& c : file.at("cases")) {
      model.cases.push_back(ReadCase(c));
    }
  } catch (const json::exception& e) {
    std::cerr << path << ": " << e.what() << "\n";
    std::abort();
  }
  return model;
}

}  // namespace switchyard::test
