#include <nlohmann/json.hpp>
#include <optional>
#include <unordered_map>

#include "services/base/ceil_div.h"
#include "services/base/check.h"
#include "services/base/file.h"
#include "services/base/status.h"
#include "services/checkpoint/tensor_source.h"
#include "services/gguf/split_model.h"

namespace switchyard::checkpoint {
namespace {

constexpr uint64_t kMaxConfigBytes = 64 << 20;

// A matrix and the tensors that it consists of.
struct Matrix {
  TensorInfo info;       // as a whole
  std::string elements;  // names
  std::string scale, zero;
  std::string order;  // of columns: their groups, which must ascend
  Packing packing = Packing::kRows;
  int64_t stride = 0;
  WeightScales scales;  // without pointers
  absl::Status problem;
};

// Finds the parts of one matrix and how they lie. Every check of a tensor's shape is here: what
// comes out of it may be read by its strides.
class Resolver {
 public:
  Resolver(const TensorSource& source, const TensorInfo& elements, std::string module)
      : source_(source), module_(std::move(module)) {
    out_.info = elements;
    out_.elements = elements.name;
  }

  Matrix Int8() {
    if (Rank2()) ReadScales(".weight_scale", 32);
    return Finish("");
  }

  Matrix Int4(bool zero_points) {
    if (Rank2()) {
      Unpack(DType::kI4);
      if (source_.Find(module_ + ".weight_g_idx") != nullptr) {
        Refuse(
            Unimplemented("{}: tensor \"{}.weight_g_idx\": columns in another order are not "
                          "supported (actorder \"group\")",
                          File(), module_));
      }
      ReadScales(".weight_scale", 32);
      if (zero_points) ReadZeros();
    }
    return Finish(zero_points ? " zeros" : "");
  }

  Matrix F8(const QuantizationConfig& config) {
    const std::string_view suffix = config.inverse_name ? ".weight_scale_inv" : ".weight_scale";
    if (Rank2() && config.block_rows > 0) {
      ReadBlockScales(suffix, config.block_rows, config.block_columns);
    } else if (out_.problem.ok()) {
      ReadScales(suffix, 128);
    }
    return Finish("");
  }

  Matrix Mxfp4() {
    std::vector<int64_t>& shape = out_.info.shape;
    if (shape.size() != 4 || shape[3] != 16 || shape[0] * shape[1] * shape[2] == 0) {
      Refuse(
          InvalidArgument("{}: tensor \"{}\" has the shape [{}], expected [experts, out, in / 32, "
                          "16]",
                          File(), out_.elements, fmt::join(shape, ", ")));
    } else {
      const std::vector<int64_t> blocks(shape.begin(), shape.end() - 1);
      shape.pop_back();
      shape.back() *= 32;
      Rename(module_, DType::kE2M1);
      if (const TensorInfo* part = Part("_scales", {DType::kU8}); part == nullptr) {
      } else if (part->shape != blocks) {
        WrongShape(*part, fmt::format("[{}]", fmt::join(blocks, ", ")));
      } else {
        SetScales(*part, 1, 32, blocks[2], 1);
      }
    }
    return Finish("");
  }

  // Words of the transposed matrix.
  Matrix Transposed(const QuantizationConfig& config) {
    const bool gptq = config.method == Quantization::kGptq;
    if (Rank2()) {
      std::vector<int64_t>& shape = out_.info.shape;
      out_.packing = gptq ? Packing::kGptq : Packing::kAwq;
      out_.stride = shape[1];
      shape = gptq ? std::vector<int64_t>{shape[1], shape[0] * 8}
                   : std::vector<int64_t>{shape[1] * 8, shape[0]};
      Rename(module_ + ".weight", DType::kI4);
      ReadColumnScales();
      out_.scales.zero_offset = config.zero_offset;
      if (gptq && source_.Find(module_ + ".g_idx") != nullptr) ReadOrder();
    }
    return Finish(gptq ? fmt::format(" gptq {}", config.zero_offset) : " awq");
  }

 private:
  std::string File() const { return source_.files()[static_cast<size_t>(out_.info.file)]; }
  int64_t rows() const { return out_.info.shape[out_.info.shape.size() - 2]; }
  int64_t columns() const { return out_.info.shape.back(); }

  // The first problem counts.
  bool Refuse(absl::Status problem) {
    if (out_.problem.ok()) out_.problem = std::move(problem);
    return false;
  }

  bool Rank2() {
    const std::vector<int64_t>& shape = out_.info.shape;
    if (shape.size() == 2 && shape[0] > 0 && shape[1] > 0) return true;
    return Refuse(InvalidArgument("{}: tensor \"{}\" has the shape [{}], expected a matrix", File(),
                                  out_.elements, fmt::join(shape, ", ")));
  }

  // Words of eight elements along rows.
  void Unpack(DType dtype) {
    out_.info.shape.back() *= 8;
    Rename(module_ + ".weight", dtype);
  }

  void Rename(std::string name, DType dtype) {
    out_.info.name = std::move(name);
    out_.info.dtype = dtype;
    if (source_.Find(out_.info.name) != nullptr) {
      Refuse(InvalidArgument("{}: both \"{}\" and \"{}\" are there", File(), out_.elements,
                             out_.info.name));
    }
  }

  const TensorInfo* Part(std::string_view suffix, std::initializer_list<DType> dtypes) {
    const std::string name = fmt::format("{}{}", module_, suffix);
    const TensorInfo* part = source_.Find(name);
    if (part == nullptr) {
      Refuse(NotFound("{}: tensor \"{}\" is quantised, but has no \"{}\"", File(), out_.elements,
                      name));
      return nullptr;
    }
    std::string known;
    for (DType dtype : dtypes) {
      if (part->unknown_dtype.empty() && part->dtype == dtype) return part;
      known += fmt::format("{}{}", known.empty() ? "" : ", ", Name(dtype));
    }
    Refuse(Unimplemented(
        "{}: tensor \"{}\" has dtype {}; supported: {}", File(), name,
        part->unknown_dtype.empty() ? Name(part->dtype) : std::string_view(part->unknown_dtype),
        known));
    return nullptr;
  }

  void WrongShape(const TensorInfo& part, std::string_view expected) {
    Refuse(InvalidArgument("{}: tensor \"{}\" has the shape [{}], expected {} of a matrix [{}]",
                           File(), part.name, fmt::join(part.shape, ", "), expected,
                           fmt::join(out_.info.shape, ", ")));
  }

  // One scale, one a row, or one for each of equal pieces of a row, which are multiples of `unit`.
  void ReadScales(std::string_view suffix, int64_t unit) {
    const TensorInfo* part = Part(suffix, {DType::kF32, DType::kBF16, DType::kF16});
    if (part == nullptr) return;
    std::vector<int64_t> shape = part->shape;
    while (shape.size() < 2) shape.push_back(1);
    const int64_t groups = shape[1];
    if (shape.size() == 2 && shape[0] == 1 && groups == 1) {
      SetScales(*part, rows(), columns(), 0, 0);
    } else if (shape.size() == 2 && shape[0] == rows() && AreGroups(groups, unit)) {
      SetScales(*part, 1, columns() / groups, groups, 1);
    } else {
      return WrongShape(*part,
                        fmt::format("a scale for each row or for groups of {}·n columns", unit));
    }
  }

  bool AreGroups(int64_t groups, int64_t unit) const {
    return groups > 0 && columns() % groups == 0 && (groups == 1 || columns() / groups % unit == 0);
  }

  void SetScales(const TensorInfo& part, int64_t group_rows, int64_t group_columns,
                 int64_t row_stride, int64_t column_stride) {
    Add(part, &out_.scale);
    WeightScales& s = out_.scales;
    s.dtype = part.dtype;
    s.group_rows = group_rows;
    s.group_columns = group_columns;
    s.row_stride = row_stride;
    s.column_stride = column_stride;
  }

  void ReadBlockScales(std::string_view suffix, int64_t block_rows, int64_t block_columns) {
    const TensorInfo* part = Part(suffix, {DType::kF32, DType::kBF16});
    if (part == nullptr) return;
    const int64_t down = CeilDiv(rows(), block_rows), across = CeilDiv(columns(), block_columns);
    if (part->shape != std::vector<int64_t>{down, across}) {
      return WrongShape(*part, fmt::format("[{}, {}]", down, across));
    }
    SetScales(*part, block_rows, block_columns, across, 1);
  }

  // [groups, rows], and [groups, rows / 8] words of zero points.
  void ReadColumnScales() {
    const TensorInfo* part = Part(".scales", {DType::kF16, DType::kBF16, DType::kF32});
    if (part == nullptr) return;
    const int64_t groups = part->shape.empty() ? 0 : part->shape[0];
    if (part->shape != std::vector<int64_t>{groups, rows()} || !AreGroups(groups, 32) ||
        rows() % 8 != 0) {
      return WrongShape(*part, "a row of scales for each group of 32·n columns");
    }
    SetScales(*part, 1, columns() / groups, 1, rows());
    const TensorInfo* zeros = Part(".qzeros", {DType::kI32});
    if (zeros == nullptr) return;
    if (zeros->shape != std::vector<int64_t>{groups, rows() / 8}) {
      return WrongShape(*zeros, fmt::format("[{}, {}]", groups, rows() / 8));
    }
    Add(*zeros, &out_.zero);
    out_.scales.zero_row_stride = 1;
    out_.scales.zero_column_stride = rows() / 8;
  }

  void ReadOrder() {
    const TensorInfo* part = Part(".g_idx", {DType::kI32});
    if (part == nullptr) return;
    if (part->shape != std::vector<int64_t>{columns()}) {
      return WrongShape(*part, fmt::format("[{}]", columns()));
    }
    out_.order = part->name;
  }

  void ReadZeros() {
    const TensorInfo* part = Part(".weight_zero_point", {DType::kI32});
    if (part == nullptr) return;
    const int64_t groups = CeilDiv(columns(), out_.scales.group_columns);
    if (part->shape != std::vector<int64_t>{CeilDiv(rows(), 8), groups}) {
      return WrongShape(*part, fmt::format("[{}, {}]", CeilDiv(rows(), 8), groups));
    }
    Add(*part, &out_.zero);
    out_.scales.zero_row_stride = groups;
    out_.scales.zero_column_stride = 1;
  }

  void Add(const TensorInfo& part, std::string* name) {
    *name = part.name;
    out_.info.scale_bytes += part.bytes;
  }

  Matrix Finish(std::string_view more) {
    out_.info.scales =
        fmt::format("{}x{}{}", out_.scales.group_rows, out_.scales.group_columns, more);
    return std::move(out_);
  }

  const TensorSource& source_;
  const std::string module_;
  Matrix out_;
};

// `name` without its suffix, if it has that.
std::optional<std::string> Without(std::string_view suffix, std::string_view name) {
  if (!name.ends_with(suffix)) return std::nullopt;
  return std::string(name.substr(0, name.size() - suffix.size()));
}

// The matrix that a tensor is the elements of.
std::optional<Matrix> MatrixFrom(const QuantizationConfig& config, const TensorSource& source,
                                 const TensorInfo& tensor) {
  if (!tensor.unknown_dtype.empty()) return std::nullopt;
  switch (config.method) {
    case Quantization::kNone:
      break;
    case Quantization::kInt8:
      if (const auto module = Without(".weight", tensor.name);
          module && tensor.dtype == DType::kI8) {
        return Resolver(source, tensor, *module).Int8();
      }
      break;
    case Quantization::kInt4:
      if (const auto module = Without(".weight_packed", tensor.name);
          module && tensor.dtype == DType::kI32) {
        return Resolver(source, tensor, *module).Int4(config.zero_points);
      }
      break;
    case Quantization::kFp8:
      if (const auto module = Without(".weight", tensor.name);
          module && tensor.dtype == DType::kF8E4M3) {
        return Resolver(source, tensor, *module).F8(config);
      }
      break;
    case Quantization::kMxfp4:
      if (const auto module = Without("_blocks", tensor.name);
          module && tensor.dtype == DType::kU8) {
        return Resolver(source, tensor, *module).Mxfp4();
      }
      break;
    case Quantization::kGptq:
    case Quantization::kAwq:
      if (const auto module = Without(".qweight", tensor.name);
          module && tensor.dtype == DType::kI32) {
        return Resolver(source, tensor, *module).Transposed(config);
      }
      break;
  }
  return std::nullopt;
}

class QuantisedSource : public TensorSource {
 public:
  QuantisedSource(const QuantizationConfig& config, std::unique_ptr<TensorSource> source)
      : source_(std::move(source)) {
    for (const TensorInfo& tensor : source_->tensors()) {
      std::optional<Matrix> matrix = MatrixFrom(config, *source_, tensor);
      tensors_.push_back(matrix ? matrix->info : tensor);
      if (matrix) matrices_.emplace(matrix->info.name, *std::move(matrix));
    }
    std::ranges::stable_sort(tensors_, {}, &TensorInfo::name);
  }

  const std::vector<std::string>& files() const override { return source_->files(); }
  const std::vector<TensorInfo>& tensors() const override { return tensors_; }

  const TensorInfo* Find(std::string_view name) const override {
    const Matrix* matrix = MatrixNamed(name);
    return matrix != nullptr ? &matrix->info : source_->Find(name);
  }

  absl::Status Map(const std::vector<TensorRange>& ranges) override {
    std::vector<TensorRange> parts;
    for (const TensorRange& range : ranges) {
      const Matrix* matrix = MatrixNamed(range.name);
      if (matrix == nullptr) {
        parts.push_back(range);
        continue;
      }
      SY_RETURN_IF_ERROR(Check(*matrix, range));
      if (!matrix->order.empty()) SY_RETURN_IF_ERROR(CheckOrder(*matrix));
      for (TensorRange& part : PartsOf(range)) parts.push_back(std::move(part));
    }
    return source_->Map(parts);
  }

  absl::Status Populate(const TensorRange& range) const override {
    for (const TensorRange& part : PartsOf(range)) SY_RETURN_IF_ERROR(source_->Populate(part));
    return absl::OkStatus();
  }

  absl::Status Verify(const TensorRange& range) const override {
    for (const TensorRange& part : PartsOf(range)) SY_RETURN_IF_ERROR(source_->Verify(part));
    return absl::OkStatus();
  }

  void Evict(const TensorRange& range) const override {
    for (const TensorRange& part : PartsOf(range)) source_->Evict(part);
  }

  absl::StatusOr<MappedTensor> Get(const TensorRange& range) const override {
    const Matrix* matrix = MatrixNamed(range.name);
    if (matrix == nullptr) return source_->Get(range);
    SY_RETURN_IF_ERROR(Check(*matrix, range));
    SY_ASSIGN_OR_RETURN(MappedTensor out, source_->Get(PartOf(*matrix, range, matrix->elements)));
    const int64_t count = out.shape[0];
    out.dtype = matrix->info.dtype;
    out.shape = matrix->info.shape;
    if (IsStacked(*matrix)) out.shape[0] = count;
    out.packing = matrix->packing;
    out.stride = matrix->stride;
    out.scales = matrix->scales;
    SY_ASSIGN_OR_RETURN(const MappedTensor scale,
                        source_->Get(PartOf(*matrix, range, matrix->scale)));
    out.scales.data = scale.data;
    if (!matrix->zero.empty()) {
      SY_ASSIGN_OR_RETURN(const MappedTensor zero,
                          source_->Get(PartOf(*matrix, range, matrix->zero)));
      out.scales.zeros = zero.data;
    }
    return out;
  }

  absl::Status Read(int file, uint64_t offset, void* to, size_t bytes) const override {
    return source_->Read(file, offset, to, bytes);
  }

 private:
  // Matrices of several experts can be had one by one, others as a whole only.
  static bool IsStacked(const Matrix& matrix) { return matrix.info.shape.size() > 2; }

  static absl::Status Check(const Matrix& matrix, const TensorRange& range) {
    SY_RETURN_IF_ERROR(matrix.problem);
    const bool whole =
        range.first == 0 && (range.count == -1 || range.count == matrix.info.shape[0]);
    if (whole || IsStacked(matrix)) return absl::OkStatus();
    return InvalidArgument("tensor \"{}\": rows of a quantised matrix cannot be had by themselves",
                           range.name);
  }

  // Columns that were reordered by their importance are not supported.
  absl::Status CheckOrder(const Matrix& matrix) const {
    const TensorInfo& order = *source_->Find(matrix.order);
    std::vector<int32_t> groups(order.bytes / sizeof(int32_t));
    SY_RETURN_IF_ERROR(source_->Read(order.file, order.offset, groups.data(), order.bytes));
    for (size_t k = 0; k < groups.size(); ++k) {
      if (groups[k] == static_cast<int64_t>(k) / matrix.scales.group_columns) continue;
      return Unimplemented(
          "{}: tensor \"{}\": column {} is of group {}; supported: groups of columns beside each "
          "other (desc_act false)",
          files()[static_cast<size_t>(order.file)], order.name, k, groups[k]);
    }
    return absl::OkStatus();
  }

  // The ranges of the file's own tensors.
  std::vector<TensorRange> PartsOf(const TensorRange& range) const {
    const Matrix* matrix = MatrixNamed(range.name);
    if (matrix == nullptr) return {range};
    std::vector<TensorRange> parts;
    for (const std::string* name : {&matrix->elements, &matrix->scale, &matrix->zero}) {
      if (!name->empty()) parts.push_back(PartOf(*matrix, range, *name));
    }
    return parts;
  }

  static TensorRange PartOf(const Matrix& matrix, const TensorRange& range,
                            const std::string& name) {
    if (!IsStacked(matrix)) return {.name = name};
    return {.name = name, .first = range.first, .count = range.count};
  }

  const Matrix* MatrixNamed(std::string_view name) const {
    const auto it = matrices_.find(std::string(name));
    return it == matrices_.end() ? nullptr : &it->second;
  }

  const std::unique_ptr<TensorSource> source_;
  std::vector<TensorInfo> tensors_;
  std::unordered_map<std::string, Matrix> matrices_;
};

}  // namespace

WeightView MatrixOf(const MappedTensor& tensor, WeightLayout layout) {
  const size_t rank = tensor.shape.size();
  SY_CHECK(rank >= 2);
  const int64_t rows = tensor.shape[rank - 2], columns = tensor.shape[rank - 1];
  const bool out_in = layout == WeightLayout::kOutIn;
  return {.data = tensor.data,
          .dtype = tensor.dtype,
          .layout = layout,
          .out = out_in ? rows : columns,
          .in = out_in ? columns : rows,
          .stride = tensor.stride > 0 ? tensor.stride : columns,
          .packing = tensor.packing,
          .scales = tensor.scales};
}

std::unique_ptr<TensorSource> WithQuantisedMatrices(const QuantizationConfig& config,
                                                    std::unique_ptr<TensorSource> source) {
  if (config.method == Quantization::kNone) return source;
  return std::make_unique<QuantisedSource>(config, std::move(source));
}

absl::StatusOr<std::unique_ptr<TensorSource>> OpenCheckpoint(const std::string& path) {
  if (gguf::IsGguf(path)) return OpenGguf(path);
  SY_ASSIGN_OR_RETURN(auto source, OpenSafetensors(path));
  const std::string config_path = path + "/config.json";
  if (!FileExists(config_path)) return source;
  SY_ASSIGN_OR_RETURN(const std::string text, ReadFile(config_path, kMaxConfigBytes));
  const auto config = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (config.is_discarded()) return InvalidArgument("{}: is not valid JSON", config_path);
  const auto quantization = ReadQuantization(config);
  if (!quantization.ok()) return Annotate(quantization.status(), path);
  return WithQuantisedMatrices(*quantization, std::move(source));
}

}  // namespace switchyard::checkpoint
