// The golden files of tests/golden: what Hugging Face transformers computes for a model in fp32.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace switchyard::test {

// A file of the repository, by its path from the root (SWITCHYARD_SOURCE_DIR, or here).
std::string SourcePath(const std::string& relative);

struct GoldenLogits {
  int step = 0;  // index into output_ids
  std::vector<int32_t> ids;
  std::vector<float> values;
};

struct GoldenRouting {
  std::vector<int> layers;                                 // of the model, ascending
  std::vector<std::vector<std::vector<int32_t>>> experts;  // [layer][prompt token][top_k]
  std::vector<std::vector<std::vector<float>>> weights;
};

struct GoldenCase {
  std::string name;
  std::vector<int32_t> prompt_ids, output_ids;
  std::vector<GoldenLogits> top_logits;
  GoldenRouting routing;  // no layers where the case has none
};

struct GoldenModel {
  std::string name;
  std::string directory;  // of the checkpoint
  std::vector<GoldenCase> cases;
};

// Every model with a golden file, sorted: tests cover what lies in the directory.
std::vector<std::string> GoldenModelNames();
// Dies with the file's name where it is missing or broken.
GoldenModel LoadGolden(const std::string& name);

}  // namespace switchyard::test
