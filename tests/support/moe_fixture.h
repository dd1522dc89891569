// A small MoE model in memory for tests of the wire: a spec, its expert tensors, routing, and the
// sum over the fixed tree written out as plain loops.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "services/checkpoint/tensor_source.h"
#include "services/kernels/kernels.h"
#include "services/model/spec.h"
#include "services/tensor/buffer.h"

namespace switchyard::testing {

struct MoeShape {
  int layers = 3;  // the first is dense
  int hidden = 64;
  int experts = 12;
  int intermediate = 32;
  int groups = 1;
  int top_k = 4;
  bool stacked = false;  // gpt-oss as in safetensors
  bool biased = false;   // gpt-oss with a tensor for each expert and role
};

ModelSpec MoeSpec(const MoeShape& shape);

// bf16 tensors of normal random numbers. Get works only inside of what was mapped.
class MemorySource : public checkpoint::TensorSource {
 public:
  MemorySource(const ModelSpec& spec, uint32_t seed);

  const std::vector<std::string>& files() const override { return files_; }
  const std::vector<checkpoint::TensorInfo>& tensors() const override { return infos_; }
  const checkpoint::TensorInfo* Find(std::string_view name) const override;
  absl::Status Map(const std::vector<checkpoint::TensorRange>& ranges) override;
  absl::StatusOr<checkpoint::MappedTensor> Get(const checkpoint::TensorRange& range) const override;

  absl::Status Read(int, uint64_t, void*, size_t) const override {
    return absl::UnimplementedError("a source in memory has no files");
  }

  std::vector<checkpoint::TensorRange> mapped;

 private:
  std::vector<std::string> files_{"memory"};
  std::vector<checkpoint::TensorInfo> infos_;
  std::map<std::string, std::vector<bf16>> data_;
};

// Rows of one micro-batch with their routing, and room for the result.
struct MoeBatch {
  MoeBatch(const ModelSpec& spec, DType dtype, int64_t tokens, uint32_t seed);

  int64_t tokens;
  AlignedBuffer x;               // [tokens, hidden] of dtype
  std::vector<int32_t> experts;  // [tokens, top_k]
  std::vector<float> weights;    // [tokens, top_k]
  std::vector<float> out;        // [tokens, hidden]
  std::vector<uint8_t> lost;     // [tokens]
};

// What `batch.out` has to be, bit for bit: every row of every expert computed alone, then fp32
// inside a group by ascending expert, rounded to the wire dtype, then fp32 over groups.
std::vector<float> PlainMoe(const ModelSpec& spec, const checkpoint::TensorSource& source,
                            const kernels::Compute& compute, DType dtype, int layer,
                            const MoeBatch& batch);

}  // namespace switchyard::testing
