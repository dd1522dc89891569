#include <algorithm>
#include <unordered_set>

#include "services/base/status.h"
#include "services/checkpoint/gguf_names.h"
#include "services/checkpoint/mapped_source.h"
#include "services/checkpoint/tensor_source.h"
#include "services/gguf/split_model.h"

namespace switchyard::checkpoint {
namespace {

constexpr std::string_view kGgufDTypes = "F32, F16, BF16, Q8_0, Q4_0, Q4_K, Q5_K, Q6_K, MXFP4";
// What all files of a model may hold, an expert's slice counted as one.
constexpr size_t kMaxTensors = 4 << 20;

struct ElementType {
  uint32_t number;
  std::string_view name;  // ggml's
  std::optional<DType> dtype;
};

// enum ggml_type.
constexpr ElementType kTypes[] = {
    {0, "F32", DType::kF32},
    {1, "F16", DType::kF16},
    {2, "Q4_0", DType::kQ4_0},
    {3, "Q4_1", {}},
    {6, "Q5_0", {}},
    {7, "Q5_1", {}},
    {8, "Q8_0", DType::kQ8_0},
    {9, "Q8_1", {}},
    {10, "Q2_K", {}},
    {11, "Q3_K", {}},
    {12, "Q4_K", DType::kQ4K},
    {13, "Q5_K", DType::kQ5K},
    {14, "Q6_K", DType::kQ6K},
    {15, "Q8_K", {}},
    {16, "IQ2_XXS", {}},
    {17, "IQ2_XS", {}},
    {18, "IQ3_XXS", {}},
    {19, "IQ1_S", {}},
    {20, "IQ4_NL", {}},
    {21, "IQ3_S", {}},
    {22, "IQ2_S", {}},
    {23, "IQ4_XS", {}},
    {24, "I8", DType::kI8},
    {25, "I16", DType::kI16},
    {26, "I32", DType::kI32},
    {27, "I64", DType::kI64},
    {28, "F64", DType::kF64},
    {29, "IQ1_M", {}},
    {30, "BF16", DType::kBF16},
    {34, "TQ1_0", {}},
    {35, "TQ2_0", {}},
    {39, "MXFP4", DType::kMXFP4},
    {40, "NVFP4", {}},
};

ElementType TypeOf(uint32_t number) {
  const auto* it = std::ranges::find(kTypes, number, &ElementType::number);
  return it == std::end(kTypes) ? ElementType{number, "", {}} : *it;
}

// The tensor as a whole, under its own name.
absl::StatusOr<TensorInfo> Whole(const gguf::Tensor& tensor, const gguf::Header& file) {
  TensorInfo info{.name = tensor.name, .offset = tensor.offset};
  uint64_t elements = 1;
  for (uint64_t size : tensor.dims) {
    info.shape.insert(info.shape.begin(), static_cast<int64_t>(size));
    elements *= size;
  }
  const ElementType type = TypeOf(tensor.type);
  if (!type.dtype.has_value()) {
    info.unknown_dtype = type.name.empty() ? fmt::format("{} of ggml", type.number) : type.name;
    return info;
  }
  info.dtype = *type.dtype;
  if (IsBlocked(info.dtype) && info.shape.size() < 2) {
    info.unknown_dtype = fmt::format("{} as a vector", type.name);
    return info;
  }
  const BlockShape block = BlockOf(info.dtype);
  if (info.shape.back() % block.elements != 0) {
    return InvalidArgument("{}: tensor \"{}\" has rows of {} elements, no whole number of {} ({})",
                           file.path, tensor.name, info.shape.back(), type.name, block.elements);
  }
  info.bytes = static_cast<uint64_t>(BytesOf(info.dtype, static_cast<int64_t>(elements)));
  if (info.bytes > file.file_bytes - info.offset) {
    return InvalidArgument(
        "{}: tensor \"{}\" of {} bytes begins at byte {} of {}: the file is truncated or its "
        "header lies",
        file.path, tensor.name, info.bytes, info.offset, file.file_bytes);
  }
  return info;
}

class Opener {
 public:
  absl::StatusOr<std::unique_ptr<TensorSource>> Open(const std::string& path) {
    SY_ASSIGN_OR_RETURN(const std::vector<gguf::Header> files, gguf::ReadModel(path, gguf::NoList));
    const auto it = files[0].metadata.find("general.architecture");
    if (it != files[0].metadata.end() && it->is_string()) architecture_ = it->get<std::string>();
    for (const gguf::Header& file : files) SY_RETURN_IF_ERROR(Add(file));
    SY_ASSIGN_OR_RETURN(Checksums checksums, Checksums::Read(Checksums::PathFor(path)));
    source_->SetChecksums(std::move(checksums));
    source_->Finish();
    return std::unique_ptr<TensorSource>(std::move(source_));
  }

 private:
  absl::Status Add(const gguf::Header& header) {
    SY_ASSIGN_OR_RETURN(const int file, source_->AddFile(header.path));
    std::vector<TensorInfo> whole;
    for (const gguf::Tensor& tensor : header.tensors) {
      if (const std::string_view why = WhyUnsupported(tensor.name); !why.empty()) {
        return Unimplemented("{}: tensor \"{}\" {}", header.path, tensor.name, why);
      }
      SY_ASSIGN_OR_RETURN(whole.emplace_back(), Whole(tensor, header));
      whole.back().file = file;
    }
    SY_RETURN_IF_ERROR(CheckOverlaps(header.path, whole));
    for (TensorInfo& tensor : whole) {
      HuggingFaceName name = HuggingFaceNameOf(architecture_, tensor.name);
      if (name.stacked) {
        SY_RETURN_IF_ERROR(AddExperts(name, tensor, header));
        continue;
      }
      tensor.name = std::move(name.name);
      SY_RETURN_IF_ERROR(AddTensor(std::move(tensor), header));
    }
    return absl::OkStatus();
  }

  absl::Status AddExperts(const HuggingFaceName& name, const TensorInfo& all,
                          const gguf::Header& header) {
    const int64_t experts = all.shape[0];
    if (all.shape.size() < 2 || experts > static_cast<int64_t>(kMaxTensors - names_.size())) {
      return InvalidArgument("{}: tensor \"{}\" has the shape [{}], which is none of experts",
                             header.path, all.name, fmt::join(all.shape, ", "));
    }
    TensorInfo one = all;
    one.shape.erase(one.shape.begin());
    if (IsBlocked(one.dtype) && one.shape.size() < 2 && one.unknown_dtype.empty()) {
      one.unknown_dtype = fmt::format("{} as a vector", Name(one.dtype));
    }
    for (int64_t expert = 0; expert < experts; ++expert) {
      one.bytes = all.bytes / static_cast<uint64_t>(experts);
      one.offset = all.offset + static_cast<uint64_t>(expert) * one.bytes;
      one.name = fmt::format("{}{}{}", name.name, expert, name.of_expert);
      SY_RETURN_IF_ERROR(AddTensor(one, header));
    }
    return absl::OkStatus();
  }

  absl::Status AddTensor(TensorInfo tensor, const gguf::Header& header) {
    if (!names_.insert(tensor.name).second) {
      return InvalidArgument("{}: two tensors are \"{}\"", header.path, tensor.name);
    }
    source_->AddTensor(std::move(tensor));
    return absl::OkStatus();
  }

  std::string architecture_;
  std::unordered_set<std::string> names_;
  std::unique_ptr<MappedSource> source_ = std::make_unique<MappedSource>(std::string(kGgufDTypes));
};

}  // namespace

absl::StatusOr<std::unique_ptr<TensorSource>> OpenGguf(const std::string& path) {
  return Opener().Open(path);
}

}  // namespace switchyard::checkpoint
