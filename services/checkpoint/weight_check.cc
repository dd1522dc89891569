#include "services/checkpoint/weight_check.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>

#include "services/base/status.h"

namespace switchyard::checkpoint {
namespace {

constexpr size_t kChunkBytes = 16 << 20;  // between two calls of the progress callback

// The exponent bits of each element of a 64-bit word, and its lowest exponent bit: adding the
// latter to the masked former carries into the (masked out) sign bit iff all exponent bits are set,
// which is what NaN and infinity have in common.
struct Lanes {
  uint64_t exponents;
  uint64_t one;
  uint64_t signs;
};

std::optional<Lanes> LanesOf(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return Lanes{0x7f8000007f800000, 0x0080000000800000, 0x8000000080000000};
    case DType::kBF16:
      return Lanes{0x7f807f807f807f80, 0x0080008000800080, 0x8000800080008000};
    case DType::kF16:
      return Lanes{0x7c007c007c007c00, 0x0400040004000400, 0x8000800080008000};
    default:
      return std::nullopt;
  }
}

bool AllFinite(const std::byte* data, size_t bytes, const Lanes& lanes) {
  uint64_t seen = 0;
  size_t i = 0;
  for (; i + 8 <= bytes; i += 8) {
    uint64_t word;
    std::memcpy(&word, data + i, 8);
    seen |= (word & lanes.exponents) + lanes.one;
  }
  if (i < bytes) {
    uint64_t word = 0;
    std::memcpy(&word, data + i, bytes - i);
    seen |= (word & lanes.exponents) + lanes.one;
  }
  return (seen & lanes.signs) == 0;
}

float Element(const std::byte* data, size_t index, DType dtype) {
  if (dtype == DType::kF32) {
    float value;
    std::memcpy(&value, data + index * 4, 4);
    return value;
  }
  uint16_t bits;
  std::memcpy(&bits, data + index * 2, 2);
  return dtype == DType::kBF16 ? ToFloat(bf16{bits}) : ToFloat(f16{bits});
}

absl::Status Describe(const TensorSource& source, const TensorRange& range, const std::byte* data,
                      size_t first_element, size_t elements, DType dtype) {
  size_t i = 0;
  while (i < elements && std::isfinite(Element(data, i, dtype))) ++i;
  const TensorInfo* info = source.Find(range.name);
  return DataLoss("{}: tensor \"{}\": element {} is {}; the checkpoint is damaged",
                  source.files()[static_cast<size_t>(info->file)], range.name, first_element + i,
                  std::isnan(Element(data, i, dtype)) ? "NaN" : "infinite");
}

}  // namespace

absl::Status CheckWeights(const TensorSource& source, const std::vector<TensorRange>& ranges,
                          const ProgressFn& progress) {
  std::vector<MappedTensor> tensors;
  uint64_t total = 0;
  const auto bytes_of = [](const MappedTensor& tensor) {
    uint64_t bytes = SizeOf(tensor.dtype);
    for (int64_t size : tensor.shape) bytes *= static_cast<uint64_t>(size);
    return bytes;
  };
  for (const TensorRange& range : ranges) {
    SY_ASSIGN_OR_RETURN(MappedTensor tensor, source.Get(range));
    total += bytes_of(tensor);
    tensors.push_back(std::move(tensor));
  }
  uint64_t done = 0;
  for (size_t t = 0; t < tensors.size(); ++t) {
    const MappedTensor& tensor = tensors[t];
    const auto lanes = LanesOf(tensor.dtype);
    if (!lanes.has_value()) {
      return Unimplemented(
          "tensor \"{}\": dtype {} is not supported; supported: float32, bfloat16, "
          "float16",
          ranges[t].name, Name(tensor.dtype));
    }
    const size_t size = SizeOf(tensor.dtype);
    const uint64_t bytes = bytes_of(tensor);
    for (uint64_t at = 0; at < bytes; at += kChunkBytes) {
      const size_t chunk = std::min<uint64_t>(kChunkBytes, bytes - at);
      if (!AllFinite(tensor.data + at, chunk, *lanes)) {
        const uint64_t before =
            static_cast<uint64_t>(std::max<int64_t>(0, ranges[t].first)) *
            (tensor.shape.empty() ? 0 : bytes / size / static_cast<uint64_t>(tensor.shape[0]));
        return Describe(source, ranges[t], tensor.data + at, before + at / size, chunk / size,
                        tensor.dtype);
      }
      done += chunk;
      if (progress) progress(done, total);
    }
  }
  if (progress && total == 0) progress(0, 0);
  return absl::OkStatus();
}

}  // namespace switchyard::checkpoint
