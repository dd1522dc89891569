// A line per kernel, instruction set and shape: kernels_bench --benchmark_filter=MatMul/avx512bf16
// GB/s counts the weights (or the KV cache) once a call; GFLOP/s a multiply-add as two.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "services/base/ceil_div.h"
#include "services/kernels/kernels.h"
#include "services/kernels/ops.h"
#include "services/kernels/thread_pool.h"
#include "services/tensor/buffer.h"

namespace switchyard::kernels {
namespace {

// Bits that are an ordinary number near 1 in any dtype, and not all the same.
AlignedBuffer Filled(int64_t elements, DType dtype) {
  AlignedBuffer buffer(static_cast<size_t>(BytesOf(dtype, elements)));
  if (IsBlocked(dtype)) {
    std::memset(buffer.data(), 0x2c, static_cast<size_t>(BytesOf(dtype, elements)));
    return buffer;
  }
  for (int64_t i = 0; i < elements; ++i) {
    const float v = 0.5f + static_cast<float>(i * 7 % 64) / 64.0f;
    const bf16 b = ToBF16(v);
    const f16 h = ToF16(v);
    std::byte* at = buffer.data() + static_cast<size_t>(i) * SizeOf(dtype);
    const void* from = dtype == DType::kBF16  ? static_cast<const void*>(&b)
                       : dtype == DType::kF16 ? static_cast<const void*>(&h)
                                              : static_cast<const void*>(&v);
    std::memcpy(at, from, SizeOf(dtype));
  }
  return buffer;
}

struct MatMulShape {
  int64_t tasks, rows, out, in;
  DType x, w;
  WeightLayout layout;
};

std::string NameOf(const MatMulShape& s) {
  return std::to_string(s.tasks) + "x[" + std::to_string(s.rows) + "," + std::to_string(s.in) +
         "]x" + std::to_string(s.out) + "/" + std::string(Name(s.x)) + "x" +
         std::string(Name(s.w)) + (s.layout == WeightLayout::kOutIn ? "" : "/inout");
}

// Large weights, so many times over that no cache keeps them from one call to the next: what
// decoding finds. Small ones once.
class Weights {
 public:
  explicit Weights(AlignedBuffer once) : bytes_(static_cast<int64_t>(once.capacity())) {
    if (bytes_ < kLarge) {
      all_ = std::move(once);
      return;
    }
    count_ = CeilDiv(kBeyondCaches, bytes_);
    all_.Reserve(static_cast<size_t>(count_ * bytes_));
    for (int64_t i = 0; i < count_; ++i) {
      std::memcpy(all_.data() + i * bytes_, once.data(), once.capacity());
    }
  }
  const std::byte* Next() { return all_.data() + next_++ % count_ * bytes_; }

 private:
  static constexpr int64_t kLarge = int64_t{16} << 20, kBeyondCaches = int64_t{384} << 20;
  int64_t bytes_, count_ = 1, next_ = 0;
  AlignedBuffer all_;
};

void MatMul(benchmark::State& state, Isa isa, int threads, const MatMulShape& s) {
  ThreadPool pool(threads);
  const Compute compute(isa, pool);
  const AlignedBuffer x = Filled(s.tasks * s.rows * s.in, s.x);
  Weights w(Filled(s.tasks * s.out * s.in, s.w));
  AlignedBuffer y = Filled(s.tasks * s.rows * s.out, DType::kF32);
  std::vector<MatMulTask> tasks;
  for (int64_t t = 0; t < s.tasks; ++t) {
    const int64_t stored_row = s.layout == WeightLayout::kOutIn ? s.in : s.out;
    tasks.push_back(
        {.x = {x.data() + static_cast<size_t>(t * s.rows * s.in) * SizeOf(s.x), s.x, s.in},
         .rows = s.rows,
         .w = {nullptr, s.w, s.layout, s.out, s.in, stored_row},
         .y = y.as<float>() + t * s.rows * s.out,
         .y_stride = s.out});
  }
  for (auto _ : state) {
    const std::byte* data = w.Next();
    for (MatMulTask& task : tasks) {
      task.w.data = data;
      data += BytesOf(s.w, s.out * s.in);
    }
    compute.MatMul(tasks);
    benchmark::ClobberMemory();
  }
  const double calls = static_cast<double>(state.iterations());
  const double elements = static_cast<double>(s.tasks * s.out * s.in);
  state.counters["GB/s"] =
      benchmark::Counter(calls * static_cast<double>(BytesOf(s.w, s.tasks * s.out * s.in)) / 1e9,
                         benchmark::Counter::kIsRate);
  state.counters["weights/ns"] =
      benchmark::Counter(calls * elements / 1e9, benchmark::Counter::kIsRate);
  state.counters["GFLOP/s"] = benchmark::Counter(
      2 * calls * elements * static_cast<double>(s.rows) / 1e9, benchmark::Counter::kIsRate);
}

// Weights with scales beside them.
struct ScaledForm {
  const char* name;
  DType dtype, scale_dtype;
  int64_t group;  // columns
  Packing packing = Packing::kRows;
};

AlignedBuffer Same(int64_t bytes) {
  AlignedBuffer buffer(static_cast<size_t>(bytes));
  std::memset(buffer.data(), 0x2c, static_cast<size_t>(bytes));
  return buffer;
}

void ScaledMatMul(benchmark::State& state, Isa isa, int threads, const ScaledForm& form,
                  int64_t rows, int64_t width) {
  ThreadPool pool(threads);
  const Compute compute(isa, pool);
  const int64_t groups = width / form.group;
  const bool zeros = form.packing != Packing::kRows, f8 = form.dtype == DType::kF8E4M3;
  const AlignedBuffer x = Filled(rows * width, DType::kBF16);
  Weights w(Same(BytesOf(form.dtype, width * width)));
  const AlignedBuffer scales = Same(BytesOf(form.scale_dtype, width * groups));
  const AlignedBuffer zero = Same(width * groups / 2);
  AlignedBuffer y = Filled(rows * width, DType::kF32);
  MatMulTask task = {.x = {x.data(), DType::kBF16, width},
                     .rows = rows,
                     .w = {nullptr, form.dtype, WeightLayout::kOutIn, width, width, width},
                     .y = y.as<float>(),
                     .y_stride = width};
  task.w.packing = form.packing;
  if (form.packing == Packing::kAwq) task.w.stride = width / 8;
  task.w.scales = {.data = scales.data(),
                   .dtype = form.scale_dtype,
                   .group_rows = f8 ? 128 : 1,
                   .group_columns = form.group,
                   .row_stride = zeros ? 1 : groups,
                   .column_stride = zeros ? width : 1,
                   .zeros = zeros ? zero.data() : nullptr,
                   .zero_row_stride = 1,
                   .zero_column_stride = width / 8};
  for (auto _ : state) {
    task.w.data = w.Next();
    compute.MatMul(task);
    benchmark::ClobberMemory();
  }
  const double calls = static_cast<double>(state.iterations());
  const double elements = static_cast<double>(width * width);
  state.counters["GB/s"] = benchmark::Counter(calls * static_cast<double>(task.w.bytes()) / 1e9,
                                              benchmark::Counter::kIsRate);
  state.counters["GFLOP/s"] = benchmark::Counter(
      2 * calls * elements * static_cast<double>(rows) / 1e9, benchmark::Counter::kIsRate);
}

struct AttentionShape {
  int64_t rows, history;
  int heads, kv_heads, key_dim, value_dim;
  bool mla;
  DType cache = DType::kBF16;
  int window = 0;
};

void Attention(benchmark::State& state, Isa isa, int threads, const AttentionShape& s) {
  constexpr int kBlockTokens = 32;
  ThreadPool pool(threads);
  const Compute compute(isa, pool);
  const int64_t record = s.kv_heads * (KvVectorBytes(s.cache, s.key_dim) +
                                       (s.mla ? 0 : KvVectorBytes(s.cache, s.value_dim)));
  const int64_t length = s.history + s.rows, blocks = length / kBlockTokens + 1;
  const AlignedBuffer cache = Filled(blocks * kBlockTokens * record / 2, DType::kBF16);
  const AlignedBuffer q = Filled(s.rows * s.heads * s.key_dim, DType::kF32);
  AlignedBuffer out(static_cast<size_t>(s.rows * s.heads * s.value_dim) * sizeof(float));
  std::vector<int32_t> table, positions;
  for (int64_t b = 0; b < blocks; ++b) table.push_back(static_cast<int32_t>(b));
  for (int64_t r = 0; r < s.rows; ++r) positions.push_back(static_cast<int32_t>(s.history + r));
  const std::vector<const int32_t*> tables(static_cast<size_t>(s.rows), table.data());
  const AttentionTask task = {.q = q.as<float>(),
                              .out = out.as<float>(),
                              .rows = s.rows,
                              .positions = positions.data(),
                              .block_tables = tables.data(),
                              .cache = cache.data(),
                              .cache_dtype = s.cache,
                              .block_stride_bytes = kBlockTokens * record,
                              .block_tokens = kBlockTokens,
                              .heads = s.heads,
                              .kv_heads = s.kv_heads,
                              .key_dim = s.key_dim,
                              .value_dim = s.value_dim,
                              .values_in_key = s.mla,
                              .scale = 0.01f,
                              .window = s.window};
  for (auto _ : state) {
    compute.Attention(task);
    benchmark::ClobberMemory();
  }
  double macs = 0;
  for (int32_t p : positions) {
    const double keys = s.window > 0 ? std::min(p + 1, s.window) : p + 1;
    macs += keys * s.heads * (s.key_dim + s.value_dim);
  }
  const double calls = static_cast<double>(state.iterations());
  state.counters["GFLOP/s"] =
      benchmark::Counter(2 * calls * macs / 1e9, benchmark::Counter::kIsRate);
  state.counters["GB/s"] = benchmark::Counter(calls * static_cast<double>(length * record) / 1e9,
                                              benchmark::Counter::kIsRate);
}

// One row through an element-wise kernel.
constexpr int64_t kRow = 2048;
struct RowData {
  AlignedBuffer x = Filled(kRow, DType::kF32), y = Filled(kRow, DType::kF32),
                halves = Filled(kRow, DType::kBF16), blocks = Filled(kRow, DType::kQ8_0),
                bytes = Same(kRow), quantized = Same(QuantizedRows::RowBytes(kRow));
};
struct RowKernel {
  const char* name;
  void (*run)(const Ops& ops, RowData& row);
};
constexpr RowKernel kRowKernels[] = {
    {"softmax", [](const Ops& ops, RowData& r) { ops.softmax(r.x.as<float>(), kRow); }},
    {"sigmoid", [](const Ops& ops, RowData& r) { ops.sigmoid(r.x.as<float>(), kRow); }},
    {"rope",
     [](const Ops& ops, RowData& r) {
       ops.rope(r.x.as<float>(), kRow, true, r.y.as<float>(), r.y.as<float>());
     }},
    {"add", [](const Ops& ops, RowData& r) { ops.add(r.x.as<float>(), r.y.as<float>(), kRow); }},
    {"add_scaled",
     [](const Ops& ops, RowData& r) {
       ops.add_scaled(r.x.as<float>(), r.y.as<float>(), 0.5f, kRow);
     }},
    {"add_products",
     [](const Ops& ops, RowData& r) {
       ops.add_products(r.x.as<float>(), r.y.as<float>(), r.y.as<float>(), kRow);
     }},
    {"convert bf16",
     [](const Ops& ops, RowData& r) {
       ops.convert(r.x.as<float>(), kRow, DType::kBF16, r.halves.data());
     }},
    {"convert_to_float bf16",
     [](const Ops& ops, RowData& r) {
       ops.convert_to_float(r.halves.data(), DType::kBF16, kRow, r.x.as<float>());
     }},
    {"f8_to_bf16",
     [](const Ops& ops, RowData& r) {
       ops.f8_to_bf16(r.bytes.as<f8e4m3>(), kRow, r.halves.as<bf16>());
     }},
    {"quantize",
     [](const Ops& ops, RowData& r) {
       ops.quantize(r.halves.as<bf16>(), kRow, QuantizedRows{r.quantized.data(), kRow}.row(0));
     }},
    {"weights_to_float q8_0",
     [](const Ops& ops, RowData& r) {
       const WeightView w = {r.blocks.data(), DType::kQ8_0, WeightLayout::kOutIn, 1, kRow, kRow};
       ops.weights_to_float(w, 0, 0, kRow, r.x.as<float>());
     }},
};

void OneRow(benchmark::State& state, Isa isa, const RowKernel& kernel) {
  const Ops& ops = OpsFor(isa);
  RowData row;
  for (auto _ : state) {
    kernel.run(ops, row);
    benchmark::ClobberMemory();
  }
  state.SetItemsProcessed(state.iterations() * kRow);
}

void StoreKvOf(benchmark::State& state, DType dtype) {
  RowData row;
  for (auto _ : state) {
    StoreKv(row.x.as<float>(), 512, dtype, row.bytes.data());
    benchmark::ClobberMemory();
  }
  state.SetItemsProcessed(state.iterations() * 512);
}
BENCHMARK_CAPTURE(StoreKvOf, bfloat16, DType::kBF16);
BENCHMARK_CAPTURE(StoreKvOf, int8, DType::kI8);
BENCHMARK_CAPTURE(StoreKvOf, fp8, DType::kF8E4M3);

void RmsNorm(benchmark::State& state, Isa isa, int64_t rows, int64_t dim) {
  ThreadPool pool(1);
  const Compute compute(isa, pool);
  const AlignedBuffer x = Filled(rows * dim, DType::kF32), w = Filled(dim, DType::kBF16);
  AlignedBuffer out(static_cast<size_t>(rows * dim) * 2);
  for (auto _ : state) {
    compute.RmsNorm(x.as<float>(), dim, rows, dim, {w.data(), DType::kBF16, dim}, 1e-6f,
                    {out.data(), DType::kBF16, dim});
    benchmark::ClobberMemory();
  }
  state.SetItemsProcessed(state.iterations() * rows * dim);
}

void Activate(benchmark::State& state, Isa isa, int64_t rows, int64_t width) {
  ThreadPool pool(1);
  const Compute compute(isa, pool);
  const AlignedBuffer in = Filled(rows * 2 * width, DType::kF32);
  AlignedBuffer out(static_cast<size_t>(rows * width) * 2);
  const Compute::ActivationTask task = {.gate_up = in.as<float>(),
                                        .stride = 2 * width,
                                        .rows = rows,
                                        .width = width,
                                        .out = {out.data(), DType::kBF16, width}};
  for (auto _ : state) {
    compute.Activate(std::span(&task, 1));
    benchmark::ClobberMemory();
  }
  state.SetItemsProcessed(state.iterations() * rows * width);
}

// What an empty job costs, the workers awake.
void EmptyJob(benchmark::State& state) {
  ThreadPool pool(static_cast<int>(state.range(0)));
  for (auto _ : state) pool.ParallelFor(8, 1, [](int64_t, int64_t) {});
}
BENCHMARK(EmptyJob)->Arg(1)->Arg(2)->UseRealTime();

constexpr DType kF = DType::kF32, kB = DType::kBF16;
constexpr WeightLayout kOI = WeightLayout::kOutIn, kIO = WeightLayout::kInOut;
constexpr MatMulShape kMatMuls[] = {
    {1, 1, 8192, 8192, kB, kB, kOI},
    {1, 4, 8192, 8192, kB, kB, kOI},
    {1, 1, 4096, 4096, kB, kB, kIO},
    {1, 4, 4096, 4096, kB, kB, kIO},
    {1, 1, 2048, 2048, kB, kB, kOI},
    {1, 8, 2048, 2048, kB, kB, kOI},
    {1, 32, 2048, 2048, kB, kB, kOI},
    {1, 512, 2048, 2048, kB, kB, kOI},
    {1, 512, 2048, 2048, kF, kB, kOI},
    {1, 512, 2048, 2048, kF, kF, kOI},
    {1, 512, 2048, 2048, kB, kB, kIO},
    {1, 64, 1536, 7168, kB, kB, kOI},
    {1, 1, 192, 192, kB, kB, kOI},
    {8, 1, 64, 192, kB, kB, kOI},
    {64, 2, 64, 192, kB, kB, kOI},
    {64, 2, 192, 32, kB, kB, kOI},
    {16, 32, 512, 128, kB, kB, kIO},
    {64, 48, 1024, 2048, kB, kB, kOI},
    {1, 1, 8192, 8192, kB, DType::kF16, kOI},
    {64, 1, 1024, 2048, kB, DType::kQ8_0, kOI},  // experts of 16 and 32 streams
    {64, 3, 1024, 2048, kB, DType::kQ8_0, kOI},
    {64, 6, 1024, 2048, kB, DType::kQ8_0, kOI},
    {64, 16, 1024, 2048, kB, DType::kQ8_0, kOI},
    {64, 3, 1024, 2048, kB, DType::kQ4_0, kOI},
    {64, 6, 1024, 2048, kB, DType::kQ4_0, kOI},
    {64, 8, 1024, 2048, kB, DType::kQ4K, kOI},
    {64, 8, 1024, 2048, kB, DType::kQ6K, kOI},
};
constexpr DType kBlocked[] = {DType::kQ8_0, DType::kQ4_0, DType::kMXFP4,
                              DType::kQ4K,  DType::kQ5K,  DType::kQ6K};
constexpr int64_t kBlockedRows[] = {1, 4, 8, 32, 512};
constexpr ScaledForm kScaled[] = {
    {"int8", DType::kI8, DType::kBF16, 2048},
    {"int4", DType::kI4, DType::kBF16, 128},
    {"mxfp4", DType::kE2M1, DType::kU8, 32},
    {"gptq", DType::kI4, DType::kF16, 128, Packing::kGptq},
    {"awq", DType::kI4, DType::kF16, 128, Packing::kAwq},
    {"fp8", DType::kF8E4M3, DType::kF32, 128},
};
struct NamedAttention {
  const char* name;
  AttentionShape shape;
};
constexpr NamedAttention kAttentions[] = {
    {"mla16 decode 1x1024", {1, 1024, 16, 1, 576, 512, true}},
    {"mla128 decode 1x4096", {1, 4096, 128, 1, 576, 512, true}},
    {"mla16 prefill 256", {256, 0, 16, 1, 576, 512, true}},
    {"gqa32/4 decode 1x4096", {1, 4096, 32, 4, 128, 128, false}},
    {"gqa32/4 prefill 512", {512, 0, 32, 4, 128, 128, false}},
    {"mha16 prefill 512", {512, 0, 16, 16, 64, 64, false}},
    {"mla16 decode 1x1024 int8", {1, 1024, 16, 1, 576, 512, true, DType::kI8}},
    {"mla16 decode 1x1024 fp8", {1, 1024, 16, 1, 576, 512, true, DType::kF8E4M3}},
    {"gqa32/4 decode 1x4096 int8", {1, 4096, 32, 4, 128, 128, false, DType::kI8}},
    {"gqa32/4 decode 1x4096 fp8", {1, 4096, 32, 4, 128, 128, false, DType::kF8E4M3}},
    {"gqa64/8 window128 decode 1x32768", {1, 32768, 64, 8, 64, 64, false, DType::kBF16, 128}},
    {"gqa64/8 window128 prefill 512 at 8192", {512, 8192, 64, 8, 64, 64, false, DType::kBF16, 128}},
};

void RegisterAll() {
  const int cores = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  for (Isa isa : SupportedIsas()) {
    if (isa == Isa::kPortable) continue;  // the definition, not a contender
    const std::string name(Name(isa));
    for (int threads : {1, cores}) {
      const std::string suffix = "/threads:" + std::to_string(threads);
      for (const MatMulShape& s : kMatMuls) {
        benchmark::RegisterBenchmark(
            ("MatMul/" + name + "/" + NameOf(s) + suffix).c_str(),
            [=](benchmark::State& state) { MatMul(state, isa, threads, s); })
            ->UseRealTime();
      }
      for (DType dtype : kBlocked) {
        for (int64_t rows : kBlockedRows) {
          const int64_t width = rows <= 4 ? 8192 : 2048;
          const MatMulShape s = {1, rows, width, width, kB, dtype, kOI};
          benchmark::RegisterBenchmark(
              ("MatMul/" + name + "/" + NameOf(s) + suffix).c_str(),
              [=](benchmark::State& state) { MatMul(state, isa, threads, s); })
              ->UseRealTime();
        }
      }
      for (const ScaledForm& form : kScaled) {
        for (int64_t rows : kBlockedRows) {
          const int64_t width = rows <= 8 ? 8192 : 2048;
          const std::string shape = std::to_string(rows) + "x" + std::to_string(width);
          benchmark::RegisterBenchmark(
              ("ScaledMatMul/" + name + "/" + form.name + "/" + shape + suffix).c_str(),
              [=](benchmark::State& state) {
                ScaledMatMul(state, isa, threads, form, rows, width);
              })
              ->UseRealTime();
        }
      }
      for (const NamedAttention& a : kAttentions) {
        benchmark::RegisterBenchmark(
            ("Attention/" + name + "/" + a.name + suffix).c_str(),
            [=](benchmark::State& state) { Attention(state, isa, threads, a.shape); })
            ->UseRealTime();
      }
    }
    for (const RowKernel& kernel : kRowKernels) {
      benchmark::RegisterBenchmark(("Row/" + name + "/" + kernel.name).c_str(),
                                   [=](benchmark::State& state) { OneRow(state, isa, kernel); });
    }
    benchmark::RegisterBenchmark(("RmsNorm/" + name + "/32x2048").c_str(),
                                 [=](benchmark::State& state) { RmsNorm(state, isa, 32, 2048); });
    benchmark::RegisterBenchmark(("Activate/" + name + "/32x2048").c_str(),
                                 [=](benchmark::State& state) { Activate(state, isa, 32, 2048); });
  }
}

}  // namespace
}  // namespace switchyard::kernels

int main(int argc, char** argv) {
  switchyard::kernels::RegisterAll();
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
