// A Hugging Face checkpoint in bf16, f16 or f32 rewritten with quantised matrices, in layouts that
// other tools load (matrix_codec.h). Of int8 and fp8 all projections of attention and MLPs are
// quantised, of int4 those of the MLPs; embeddings, head, norms and the routers' gates stay as they
// are. A matrix at a time is in memory, beside what is mapped of the files.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "tools/quantize/matrix_codec.h"

namespace switchyard::quantize {

// "int8", "int4", "int4-awq" or "fp8".
absl::StatusOr<Scheme> SchemeFrom(const std::string& name);

struct QuantizeOptions {
  std::string in, out;  // directories; `out` is made, or empty
  Scheme scheme = Scheme::kInt8;
  int group_size = 0;      // of int4: 32, 64 or 128; 0: the largest that all rows are multiples of
  std::string text;        // a file: AWQ's activations and perplexity; empty: neither
  int text_tokens = 8192;  // of it, at most
  int threads = 0;         // 0: one a core
  std::string isa = "auto";
  uint64_t file_bytes = uint64_t{5} << 30;  // of tensors in one file
};

struct QuantizeReport {
  struct Layer {
    int layer = 0;
    // Root of Σ(w - kept)² / Σw²; 0 where nothing was quantised. mlp: dense or shared.
    double attention = 0, mlp = 0, experts = 0;
  };
  std::vector<Layer> layers;
  uint64_t bytes_before = 0, bytes_after = 0;                // of all tensors
  uint64_t expert_bytes_before = 0, expert_bytes_after = 0;  // of the routed experts
  int64_t predicted_tokens = 0;                              // of the text; 0: no text
  double perplexity_before = 0, perplexity_after = 0;
  std::string not_read_back;  // why there is no perplexity after: a layout that is not served here
  int group_size = 0;         // that was taken; 0: none
};

// Progress goes to standard error. INVALID_ARGUMENT or UNIMPLEMENTED says what cannot be quantised
// and why; `out` then holds no config.json, which is written last.
absl::StatusOr<QuantizeReport> Quantize(const QuantizeOptions& options);

}  // namespace switchyard::quantize
