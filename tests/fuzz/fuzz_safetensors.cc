// A whole .safetensors file: the header's parser, the mapping of what it lists, the weight check
// and the digest, and the same with its matrices quantised in every way, whose rows are then read
// by what their strides say. The file lies in memory and is opened through a link, as a
// checkpoint's files are.
#include <cstdint>
#include <string_view>

#include "services/checkpoint/header.h"
#include "services/checkpoint/shard_index.h"
#include "services/kernels/kernels.h"
#include "services/model/tensor_names.h"
#include "tests/fuzz/memory_file.h"

namespace switchyard::checkpoint {
namespace {

constexpr QuantizationConfig kConfigs[] = {
    {.method = Quantization::kInt8},
    {.method = Quantization::kInt4},
    {.method = Quantization::kInt4, .zero_points = true},
    {.method = Quantization::kFp8},
    {.method = Quantization::kFp8, .block_rows = 128, .block_columns = 128, .inverse_name = true},
    {.method = Quantization::kMxfp4},
    {.method = Quantization::kGptq, .zero_offset = 1},
    {.method = Quantization::kAwq}};

void ReadMatrices(TensorSource& source) {
  for (const TensorInfo& tensor : source.tensors()) {
    if (tensor.scales.empty() || !source.Map({{tensor.name}}).ok()) continue;
    if (!CheckTensor({tensor.name, tensor.shape}, tensor.dtype, tensor.shape, true).ok()) continue;
    const WeightView w = MatrixOf(*source.Get({tensor.name}));
    std::vector<float> row(static_cast<size_t>(w.in));
    for (int64_t r = 0; r < w.out; ++r) kernels::RowToFloat(w, r, row.data());
  }
}

}  // namespace

void FuzzOne(const uint8_t* data, size_t size) {
  static fuzz::MemoryFile file("model.safetensors");
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  (void)ParseHeader(text, "fuzz", 8, 1 << 20);
  (void)ParseShardIndex(text, "fuzz");
  auto source = OpenSafetensors(file.Fill(data, size).parent_path().string());
  if (!source.ok()) return;
  fuzz::UseAll(**source);
  for (const QuantizationConfig& config : kConfigs) {
    source = OpenSafetensors(file.Fill(data, size).parent_path().string());
    const auto quantised = WithQuantisedMatrices(config, *std::move(source));
    fuzz::UseAll(*quantised);
    ReadMatrices(*quantised);
  }
}

}  // namespace switchyard::checkpoint

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  switchyard::checkpoint::FuzzOne(data, size);
  return 0;
}
