#include "services/kernels/cuda/expert_products.h"

#include <type_traits>

#include "services/kernels/cuda/grouped_matmul_launch.cuh"
#include "services/kernels/cuda/grouped_wgmma_launch.cuh"
#include "services/kernels/cuda/quantize_rows.cuh"

namespace switchyard::cuda {
namespace {

template <Format kFormat>
using Of = std::integral_constant<Format, kFormat>;

template <typename F>
cudaError_t OfFormat(Format format, F f) {
  switch (format) {
    case Format::kBf16:
      return f(Of<Format::kBf16>());
    case Format::kE4M3:
      return f(Of<Format::kE4M3>());
    case Format::kI8:
      return f(Of<Format::kI8>());
    case Format::kI4:
      return f(Of<Format::kI4>());
    default:
      return f(Of<Format::kE2M1>());
  }
}

cudaError_t PrepareProduct(Format format) {
  return OfFormat(format, [](auto of) { return PrepareGroupedMatMul<of()>(); });
}

constexpr int64_t Groups(int64_t columns) {
  return (columns + kQuantizeGroup - 1) / kQuantizeGroup;
}

}  // namespace

ExpertProducts::ExpertProducts(SyCudaContext& context, const SyCudaFfnSpec& spec)
    : context_(context),
      spec_(spec),
      block_(spec),
      wgmma_(HasWgmma(context.properties) && block_.gate_up.format == block_.down.format &&
             WgmmaTakes(block_.gate_up) && WgmmaTakes(block_.down)) {}

int ExpertProducts::Prepare(SyCudaError* error) {
  if (wgmma_) {
    SY_CUDA_TRY(rows_are_e4m3() ? PrepareGroupedWgmma<Format::kE4M3>()
                                : PrepareGroupedWgmma<Format::kBf16>());
    return SY_CUDA_OK;
  }
  SY_CUDA_TRY(PrepareProduct(block_.gate_up.format));
  SY_CUDA_TRY(PrepareProduct(block_.down.format));
  return SY_CUDA_OK;
}

int ExpertProducts::Reserve(int64_t rows, int64_t pairs, SyCudaError* error) {
  const auto bytes = [](int64_t count, int64_t of_one) {
    return static_cast<size_t>(count) * static_cast<size_t>(of_one);
  };
  const auto reserve = [&](Quantized& to, int64_t count, int32_t columns) {
    if (!rows_are_e4m3()) return int{SY_CUDA_OK};
    const int64_t groups = Groups(columns);
    const int status = to.bytes.Reserve(bytes(count, groups * kQuantizeGroup), error);
    return status != SY_CUDA_OK ? status : to.scales.Reserve(bytes(count, groups * 4), error);
  };
  for (const int status :
       {inner_.Reserve(bytes(pairs, int64_t{2} * spec_.intermediate), error),
        y_.Reserve(bytes(pairs, int64_t{4} * spec_.hidden), error),
        reserve(x_e4m3_, rows, spec_.hidden), reserve(inner_e4m3_, pairs, spec_.intermediate)}) {
    if (status != SY_CUDA_OK) return status;
  }
  return SY_CUDA_OK;
}

size_t ExpertProducts::BytesOf(int64_t rows, int64_t pairs) const {
  int64_t bytes = pairs * (int64_t{2} * spec_.intermediate + int64_t{4} * spec_.hidden);
  if (rows_are_e4m3()) {
    constexpr int64_t kOfGroup = kQuantizeGroup + 4;
    bytes += kOfGroup * (rows * Groups(spec_.hidden) + pairs * Groups(spec_.intermediate));
  }
  return static_cast<size_t>(bytes);
}

int ExpertProducts::RowsARun(int left) const {
  return wgmma_ ? RowsABlock(block_.gate_up.format, left) : RowsABlock(left);
}

Matrix ExpertProducts::GateUp(const void* block) const {
  const auto* const base = static_cast<const unsigned char*>(block);
  const size_t bias = block_.gate_up_bias_at;
  return {base, bias == 0 ? nullptr : reinterpret_cast<const float*>(base + bias)};
}

Matrix ExpertProducts::Down(const void* block) const {
  const auto* const base = static_cast<const unsigned char*>(block);
  const size_t bias = block_.down_bias_at;
  return {base + block_.down_at, bias == 0 ? nullptr : reinterpret_cast<const float*>(base + bias)};
}

cudaError_t ExpertProducts::TakeRows(const uint16_t* x, int64_t rows, cudaStream_t stream) {
  if (!rows_are_e4m3()) return cudaSuccess;
  return Quantize(x, spec_.hidden, 0, rows, &x_e4m3_, stream);
}

cudaError_t ExpertProducts::Quantize(const void* x, int columns, int64_t first, int64_t rows,
                                     Quantized* to, cudaStream_t stream) {
  const int64_t groups = Groups(columns), stride = groups * kQuantizeGroup;
  const QuantizeArgs args{.x = static_cast<const uint16_t*>(x) + first * columns,
                          .x_stride = columns,
                          .rows = static_cast<int32_t>(rows),
                          .columns = columns,
                          .out = to->bytes.data() + first * stride,
                          .out_stride = stride,
                          .scales = reinterpret_cast<float*>(to->scales.data()) + first * groups,
                          .scale_stride = groups};
  const int64_t blocks = (rows * groups + kQuantizeGroupsABlock - 1) / kQuantizeGroupsABlock;
  return cuda::Launch(&QuantizeRows, dim3(static_cast<unsigned>(blocks)), dim3(kQuantizeThreads), 0,
                      stream, args);
}

cudaError_t ExpertProducts::Launch(const MatMulArgs& args, const Quantized& rows, Epilogue epilogue,
                                   const Batch& batch, cudaStream_t stream) {
  if (!wgmma_) {
    return OfFormat(args.shape.format, [&](auto of) {
      return LaunchGroupedMatMul<of()>(batch.rows, epilogue, args, batch.count, stream);
    });
  }
  GroupedArgs grouped{.product = args, .runs = batch.count, .run_count = batch.run_count};
  const int multiprocessors = context_.properties.multiProcessorCount;
  if (!rows_are_e4m3()) {
    return LaunchGroupedWgmma<Format::kBf16>(batch.rows, epilogue, grouped, batch.count,
                                             multiprocessors, stream);
  }
  const int64_t groups = Groups(args.shape.columns);
  grouped.product.x = reinterpret_cast<const uint16_t*>(rows.bytes.data());
  grouped.product.x_stride = groups * kQuantizeGroup;
  grouped.x_scales = reinterpret_cast<const float*>(rows.scales.data());
  grouped.x_scale_stride = groups;
  return LaunchGroupedWgmma<Format::kE4M3>(batch.rows, epilogue, grouped, batch.count,
                                           multiprocessors, stream);
}

cudaError_t ExpertProducts::Multiply(const Pairs& pairs, std::span<const Batch> batches,
                                     cudaStream_t stream) {
  MatMulArgs args{
      .matrices = pairs.gate_up,
      .shape = block_.gate_up,
      .x = pairs.x,
      .x_stride = spec_.hidden,
      .gather = pairs.gather,
      .y = inner_.data(),
      .y_stride = spec_.intermediate,
      .activation = {.clamped = spec_.clamped != 0, .limit = spec_.limit, .alpha = spec_.alpha}};
  const auto product = [&](const Quantized& rows, Epilogue epilogue) {
    for (const Batch& batch : batches) {
      args.runs = batch.runs;
      const cudaError_t error = Launch(args, rows, epilogue, batch, stream);
      if (error != cudaSuccess) return error;
    }
    return cudaSuccess;
  };
  if (const cudaError_t e = product(x_e4m3_, Epilogue::kActivate); e != cudaSuccess) return e;
  if (rows_are_e4m3()) {
    const cudaError_t e = Quantize(inner_.data(), spec_.intermediate, pairs.first,
                                   pairs.end - pairs.first, &inner_e4m3_, stream);
    if (e != cudaSuccess) return e;
  }
  args.matrices = pairs.down;
  args.shape = block_.down;
  args.x = reinterpret_cast<const uint16_t*>(inner_.data());
  args.x_stride = spec_.intermediate;
  args.gather = nullptr;
  args.y = y_.data();
  args.y_stride = spec_.hidden;
  return product(inner_e4m3_, Epilogue::kStore);
}

}  // namespace switchyard::cuda
