// Quantised weights: what they say, products in integers, and the same upcast.
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <string>

#include "services/kernels/kernels.h"
#include "services/kernels/ops.h"
#include "services/tensor/buffer.h"
#include "tests/support/isa_name.h"
#include "tests/unit/services/kernels/quantised_weights.h"
#include "tests/unit/services/kernels/random_data.h"

namespace switchyard::kernels {
namespace {

struct Int8Problem {
  Int8Problem(const Form& form, int64_t rows, int64_t out, int64_t in, bool extras, uint32_t seed,
              DType x_dtype = DType::kBF16, WeightLayout layout = WeightLayout::kOutIn)
      : w(form, layout, layout == WeightLayout::kOutIn ? out : in,
          layout == WeightLayout::kOutIn ? in : out, extras ? 1 : 0, seed + 1) {
    const int64_t slack = extras ? 7 : 0, x_rows = extras ? rows + 3 : rows;
    x_values = RandomFloats(x_rows * (in + slack), seed);
    if (rows > 2) std::fill_n(x_values.begin() + (in + slack), 32, 0.0f);  // a piece of zeros
    x = Stored(x_values, x_dtype);
    bias = Stored(RandomFloats(out, seed + 2), DType::kF32);
    for (int64_t m = 0; m < rows; ++m) gather.push_back(static_cast<int32_t>((m * 7 + 3) % x_rows));
    y.assign(static_cast<size_t>(rows * (out + slack)), -77.0f);
    task = {.x = {x.data(), x_dtype, in + slack},
            .rows = rows,
            .gather = extras ? gather.data() : nullptr,
            .w = w.view(),
            .y = y.data(),
            .y_stride = out + slack};
    if (extras) task.bias = {bias.data(), DType::kF32, out};
  }

  std::vector<float> Run(const Ops& ops) {
    const int64_t row_bytes = QuantizedRows::RowBytes(task.w.in);
    AlignedBuffer quantized(static_cast<size_t>((task.rows + 15) * row_bytes));
    const QuantizedRows rows = {quantized.data(), task.w.in};
    for (int64_t m = 0; m < task.rows; ++m) {
      ops.quantize(reinterpret_cast<const bf16*>(RowAt(task, m)), task.w.in, rows.row(m));
    }
    AlignedBuffer scratch(static_cast<size_t>(MatMulScratchFloats(task)) * sizeof(float) + 64);
    return ResultOf(task, y.size(), [&](const MatMulTask& copy) {
      ops.mat_mul_int8(copy, rows, 0, task.rows, 0, task.w.out, scratch.as<float>());
    });
  }
  std::vector<float> Run(const Compute& compute) {
    return ResultOf(task, y.size(), [&](const MatMulTask& copy) { compute.MatMul(copy); });
  }
  // The weights, row by row.
  std::vector<float> Upcast() const {
    const WeightView& view = w.view();
    std::vector<float> upcast(static_cast<size_t>(view.out * view.in));
    for (int64_t r = 0; r < view.rows(); ++r) {
      ReferenceFor(Isa::kPortable)
          .weights_to_float(view, r, 0, view.columns(), upcast.data() + r * view.columns());
    }
    return upcast;
  }
  // The same task with weights of float32.
  std::vector<float> RunUpcast(const Compute& compute, DType x_dtype) {
    const std::vector<float> upcast = Upcast();
    return ResultOf(task, y.size(), [&](MatMulTask& copy) {
      copy.x.dtype = x_dtype;
      copy.w = {.data = reinterpret_cast<const std::byte*>(upcast.data()),
                .dtype = DType::kF32,
                .layout = task.w.layout,
                .out = task.w.out,
                .in = task.w.in,
                .stride = task.w.columns()};
      compute.MatMul(copy);
    });
  }

  std::vector<float> x_values;
  QuantisedMatrix w;
  std::vector<std::byte> x, bias;
  std::vector<int32_t> gather;
  std::vector<float> y;
  MatMulTask task;
};

std::string Shape(const Form& form, int64_t m, int64_t n, int64_t k) {
  return std::string(form.name) + " " + std::to_string(m) + "x" + std::to_string(n) + "x" +
         std::to_string(k);
}

// Against the dequantisation of the gguf package (0.17), over the same made-up bytes.
TEST(Blocks, SayWhatGgufSays) {
  struct Golden {
    DType dtype;
    std::vector<size_t> scales;
    double sum;  // Σ w[i]·(i % 13 + 1)
    float first, middle, late;
  };
  const Golden goldens[] = {
      {DType::kQ8_0, {0}, 626.7955932617188, 0x1.ep+1, 0x1.1e408p+3, -0x1.6fdp-1},
      {DType::kQ4_0, {0}, -259.016357421875, 0x1p-2, -0x1.1bb8p-1, 0x1.264p-4},
      {DType::kMXFP4, {}, -54.58203125, 0x1.8p-6, 0x1p-6, 0x1p-8},
      {DType::kQ4K, {0, 2}, 32398.2841796875, 0x1.bcd5p+2, 0x1.c7a8p-1, 0x1.9f0f8p+4},
      {DType::kQ5K, {0, 2}, 82655.33410644531, 0x1.d41aap+5, 0x1.a3d4p+0, -0x1.5fb4p+1},
      {DType::kQ6K, {208}, 10547.569946289062, 0x1.584p+6, -0x1.88p+5, 0x1.b8c7p+6},
  };
  for (const Golden& g : goldens) {
    const size_t bytes = static_cast<size_t>(BlockOf(g.dtype).bytes);
    std::vector<std::byte> raw(static_cast<size_t>(BytesOf(g.dtype, 512)));
    for (size_t i = 0; i < raw.size(); ++i) raw[i] = std::byte((i * i * 31 + i * 7 + 11) % 251);
    for (size_t b = 0; b < raw.size() / bytes; ++b) {
      for (size_t j = 0; j < g.scales.size(); ++j) {
        raw[b * bytes + g.scales[j]] = std::byte((17 * b + j) % 256);
        raw[b * bytes + g.scales[j] + 1] = std::byte(0x2c + (b + j) % 3);
      }
      if (g.dtype == DType::kMXFP4) raw[b * bytes] = std::byte(120 + b % 9);
    }
    std::vector<float> w(512), reference(512);
    ConvertToFloat(raw.data(), g.dtype, 512, w.data());
    ReferenceFor(Isa::kPortable).convert_to_float(raw.data(), g.dtype, 512, reference.data());
    EXPECT_EQ(FirstDifference(w, reference), -1) << Name(g.dtype);
    EXPECT_EQ(w[1], g.first) << Name(g.dtype);
    EXPECT_EQ(w[49], g.middle) << Name(g.dtype);
    EXPECT_EQ(w[300], g.late) << Name(g.dtype);
    double sum = 0;
    for (size_t i = 0; i < 512; ++i) sum += w[i] * static_cast<double>(i % 13 + 1);
    EXPECT_NEAR(sum, g.sum, 1e-6) << Name(g.dtype);
  }
}

// By hand, of the layouts that services/tensor/view.h describes.
TEST(Scales, SayWhatTheirLayoutSays) {
  const auto read = [](const WeightView& w, int64_t row) {
    std::vector<float> out(64);
    ReferenceFor(Isa::kPortable).weights_to_float(w, row, 0, 64, out.data());
    return out;
  };
  // Two rows of 64 columns; scales 0.5 and 1 of the first, 2 and 4 of the second.
  const float scales[] = {0.5f, 1, 2, 4};
  WeightView w = {.out = 2, .in = 64, .stride = 64};
  w.scales = {.data = reinterpret_cast<const std::byte*>(scales),
              .group_columns = 32,
              .row_stride = 2,
              .column_stride = 1};
  std::vector<int8_t> bytes(128);
  for (int i = 0; i < 128; ++i) bytes[static_cast<size_t>(i)] = static_cast<int8_t>(i - 64);
  w.data = reinterpret_cast<const std::byte*>(bytes.data());
  w.dtype = DType::kI8;
  EXPECT_EQ(read(w, 0)[1], -31.5f);
  EXPECT_EQ(read(w, 0)[33], -31.0f);
  EXPECT_EQ(read(w, 1)[63], 252.0f);
  EXPECT_EQ(read(RowsOf(w, 1, 1), 0)[63], 252.0f);

  // Nibble k of row r is (k + 3r) % 16.
  std::vector<uint8_t> nibbles(64);
  for (size_t i = 0; i < 64; ++i) {
    const size_t k = 2 * (i % 32), r = i / 32;
    nibbles[i] = static_cast<uint8_t>((k + 3 * r) % 16 | (k + 1 + 3 * r) % 16 << 4);
  }
  w.data = reinterpret_cast<const std::byte*>(nibbles.data());
  w.dtype = DType::kI4;
  EXPECT_EQ(read(w, 0)[3], 0.5f * (3 - 8));
  EXPECT_EQ(read(w, 1)[62], 4.0f * (1 - 8));
  // Zero points of rows 0..7: two groups, a word each.
  const uint32_t zeros[] = {0x00000032, 0x000000fe};
  w.scales.zeros = reinterpret_cast<const std::byte*>(zeros);
  w.scales.zero_row_stride = 2;
  w.scales.zero_column_stride = 1;
  EXPECT_EQ(read(w, 0)[3], 0.5f * (3 - 2));
  EXPECT_EQ(read(w, 0)[35], 1.0f * (3 - 14));
  EXPECT_EQ(read(w, 1)[62], 4.0f * (1 - 15));
  EXPECT_EQ(read(RowsOf(w, 1, 1), 0)[62], 4.0f * (1 - 15));

  const uint8_t exponents[] = {127, 128, 126, 130};
  w.dtype = DType::kE2M1;
  w.scales = {.data = reinterpret_cast<const std::byte*>(exponents),
              .dtype = DType::kU8,
              .group_columns = 32,
              .row_stride = 2,
              .column_stride = 1};
  EXPECT_EQ(read(w, 0)[3], 1.5f);
  EXPECT_EQ(read(w, 0)[32 + 15], 2 * -6.0f);
  EXPECT_EQ(read(w, 1)[62], 8 * 0.5f);
}

// By hand: column k of row r is (k + 5r) % 16.
TEST(Scales, SayWhatPackedWordsSay) {
  constexpr int64_t kRows = 16, kColumns = 32;
  const auto code = [](int64_t r, int64_t k) { return static_cast<uint32_t>((k + 5 * r) % 16); };
  std::vector<uint32_t> gptq(kColumns / 8 * kRows), awq(kColumns * kRows / 8);
  constexpr int kOrder[8] = {0, 2, 4, 6, 1, 3, 5, 7};
  for (int64_t k = 0; k < kColumns; ++k) {
    for (int64_t r = 0; r < kRows; ++r) {
      gptq[static_cast<size_t>(k / 8 * kRows + r)] |= code(r, k) << 4 * (k % 8);
    }
    for (int64_t word = 0; word < kRows / 8; ++word) {
      for (int i = 0; i < 8; ++i) {
        awq[static_cast<size_t>(k * kRows / 8 + word)] |= code(8 * word + kOrder[i], k) << 4 * i;
      }
    }
  }
  std::vector<float> scales(kRows);
  for (int64_t r = 0; r < kRows; ++r) scales[static_cast<size_t>(r)] = static_cast<float>(1 + r);
  const uint32_t gptq_zeros[] = {0x76543210, 0xfedcba98};  // row r has r
  const uint32_t awq_zeros[] = {0x75316420, 0xfdb9eca8};
  for (const Packing packing : {Packing::kGptq, Packing::kAwq}) {
    const bool is_gptq = packing == Packing::kGptq;
    WeightView w = {.data = reinterpret_cast<const std::byte*>(is_gptq ? gptq.data() : awq.data()),
                    .dtype = DType::kI4,
                    .out = kRows,
                    .in = kColumns,
                    .stride = is_gptq ? kRows : kRows / 8,
                    .packing = packing};
    w.scales = {.data = reinterpret_cast<const std::byte*>(scales.data()),
                .group_columns = kColumns,
                .row_stride = 1,
                .column_stride = kRows,
                .zeros = reinterpret_cast<const std::byte*>(is_gptq ? gptq_zeros : awq_zeros),
                .zero_row_stride = 1,
                .zero_column_stride = kRows / 8,
                .zero_offset = is_gptq ? 1 : 0};
    for (int64_t r = 0; r < kRows; ++r) {
      std::vector<float> whole(kColumns), part(kColumns);
      const Ops& ops = ReferenceFor(Isa::kPortable);
      ops.weights_to_float(w, r, 0, kColumns, whole.data());
      ops.weights_to_float(RowsOf(w, r, 1), 0, 0, kColumns, part.data());
      EXPECT_EQ(whole, part);
      for (int64_t k = 0; k < kColumns; ++k) {
        const int64_t zero = r + (is_gptq ? 1 : 0);
        ASSERT_EQ(whole[static_cast<size_t>(k)],
                  static_cast<float>((1 + r) * (static_cast<int64_t>(code(r, k)) - zero)))
            << r << " " << k;
      }
    }
  }
}

class Int8Test : public testing::TestWithParam<Isa> {};

TEST_P(Int8Test, EqualsTheReferenceBitForBit) {
  const Ops &ops = OpsFor(GetParam()), &reference = ReferenceFor(GetParam());
  if (GetParam() == Isa::kPortable) GTEST_SKIP() << "it is the reference";
  uint32_t seed = 1;
  std::mt19937 random(4);
  auto check = [&](const Form& form, int64_t m, int64_t n, int64_t blocks, bool extras) {
    const int64_t k = blocks * form.unit();
    Int8Problem problem(form, m, n, k, extras, seed++);
    EXPECT_EQ(FirstDifference(problem.Run(ops), problem.Run(reference)), -1)
        << Shape(form, m, n, k) << (extras ? " extras" : "");
  };
  for (const Form& form : kForms) {
    const int64_t most = form.unit() <= 64 ? 20 : 4;
    for (int64_t m = 1; m <= 70; ++m) {
      check(form, m, 1 + random() % 40, 1 + static_cast<int64_t>(random()) % most, m % 2 == 0);
    }
    for (int64_t i = 0; i < 16; ++i) {  // few rows have kernels of their own
      check(form, 1 + i % 4, 1 + random() % 70, 1 + static_cast<int64_t>(random()) % (3 * most),
            i < 8);
    }
    // One row of Q8_0 has a way of its own for whole groups of sixteen blocks, up to eight of them.
    for (int64_t columns : {480, 512, 544, 992, 1024, 1056, 4064, 4096, 4128, 4608}) {
      const int64_t blocks = (columns + form.unit() - 1) / form.unit();
      for (int64_t n : {37, 64}) check(form, 1, n, blocks, n == 64);
    }
    check(form, 130, 37, most, false);
    check(form, 300, 17, most - 1, true);
  }
}

// The others' scales are float16 or float32, of which random ones are tried above.
TEST_P(Int8Test, PowersOfTwoOfEverySizeAreScales) {
  if (GetParam() == Isa::kPortable) GTEST_SKIP() << "it is the reference";
  const Ops &ops = OpsFor(GetParam()), &reference = ReferenceFor(GetParam());
  constexpr int64_t kBlocks = 230;
  for (int64_t m : {1, 2, 16}) {
    Int8Problem problem({"MXFP4", DType::kMXFP4}, m, 17, kBlocks * 32, false, 3);
    const std::byte* from = problem.task.w.data;
    std::vector<std::byte> bytes(from, from + BytesOf(DType::kMXFP4, 17 * kBlocks * 32));
    for (size_t b = 0; b < 17 * kBlocks; ++b) bytes[b * 17] = static_cast<std::byte>(b % kBlocks);
    problem.task.w.data = bytes.data();
    EXPECT_EQ(FirstDifference(problem.Run(ops), problem.Run(reference)), -1) << m << " rows";
  }
}

// Words that rows share: many outputs side by side, parts of a matrix that begin inside a line or a
// word, zero points that nobody stored.
TEST_P(Int8Test, WordsOfManyRowsEqualTheReferenceBitForBit) {
  if (GetParam() == Isa::kPortable) GTEST_SKIP() << "it is the reference";
  const Ops &ops = OpsFor(GetParam()), &reference = ReferenceFor(GetParam());
  uint32_t seed = 1;
  for (const Form& form : kForms) {
    if (form.packing == Packing::kRows) continue;
    for (int64_t m : {1, 2, 3, 8, 20, 33, 270}) {
      const int64_t k = form.unit() * (form.unit() < 128 ? 7 : 3);
      Int8Problem problem(form, m, m > 8 ? 264 : 1192, k, m % 2 == 0, seed++);
      EXPECT_EQ(FirstDifference(problem.Run(ops), problem.Run(reference)), -1)
          << Shape(form, m, problem.task.w.out, k);
      const WeightView whole = problem.task.w;
      for (int64_t first : {8, 56, 128, 5}) {
        problem.task.w = RowsOf(whole, first, whole.out - first - 3);
        if (m == 3) problem.task.w.scales.zeros = nullptr;
        EXPECT_EQ(FirstDifference(problem.Run(ops), problem.Run(reference)), -1)
            << Shape(form, m, problem.task.w.out, k) << " from row " << first;
      }
    }
  }
}

TEST_P(Int8Test, RowsAreQuantizedAsTheReferenceDoes) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float inf = std::numeric_limits<float>::infinity();
  constexpr int64_t kIn = 32 * 12;
  for (uint32_t seed = 0; seed < 50; ++seed) {
    std::vector<float> values = RandomFloats(kIn, seed, std::exp2(static_cast<float>(seed) - 25));
    for (int i = 0; i < 32; ++i) {
      values[32 + i] = 0;
      values[64 + i] = static_cast<float>(i) * 0x1p-110f;
      values[96 + i] = static_cast<float>(i - 16) / 2;  // ties
      values[160 + i] *= 0x1p100f;
    }
    values[40] = nan;
    values[130] = seed % 2 == 0 ? inf : -inf;
    values[200] = -nan;
    const std::vector<std::byte> x = Stored(values, DType::kBF16);
    std::vector<std::byte> rows[2];
    for (int i = 0; i < 2; ++i) {
      rows[i].resize(static_cast<size_t>(QuantizedRows::RowBytes(kIn)));
      const Ops& ops = i == 0 ? OpsFor(GetParam()) : ReferenceFor(Isa::kPortable);
      ops.quantize(reinterpret_cast<const bf16*>(x.data()), kIn,
                   QuantizedRows{rows[i].data(), kIn}.row(0));
    }
    const QuantizedRow a = QuantizedRows{rows[0].data(), kIn}.row(0);
    const QuantizedRow b = QuantizedRows{rows[1].data(), kIn}.row(0);
    EXPECT_EQ(std::memcmp(a.q, b.q, kIn), 0) << seed;
    for (int i = 0; i < kIn / 32; ++i) {
      EXPECT_TRUE(SameBits(a.scale[i], b.scale[i])) << seed << " " << i;
      EXPECT_EQ(a.nsum[i], b.nsum[i]) << seed << " " << i;
      EXPECT_EQ(a.nhalf[i], b.nhalf[i]) << seed << " " << i;
      EXPECT_TRUE(SameBits(a.nmin[i], b.nmin[i])) << seed << " " << i;
    }
    EXPECT_TRUE(std::isnan(b.scale[1]) && std::isnan(b.scale[4]) && std::isnan(b.scale[6]));
    EXPECT_EQ(b.scale[2], 0);
  }
}

TEST_P(Int8Test, ARowIsTheSameInAnyCompany) {
  ThreadPool pool(1);
  const Compute compute(GetParam(), pool);
  for (const Form& form : kForms) {
    const int64_t k = 2 * form.unit();
    for (int64_t rows : {2, 5, 16, 33, 70}) {
      Int8Problem all(form, rows, 35, k, false, 5);
      const std::vector<float> together = all.Run(compute);
      for (int64_t m = 0; m < rows; ++m) {
        const std::vector<float> alone = RowAlone(compute, all.task, m);
        ASSERT_TRUE(std::equal(alone.begin(), alone.end(), together.begin() + m * 35, SameBits))
            << Shape(form, rows, 35, k) << " row " << m;
      }
    }
  }
}

// Tasks of one x and of their own, blocked and plain, in one call.
TEST_P(Int8Test, ThreadsAndOtherTasksChangeNothing) {
  std::vector<Int8Problem> problems;
  for (int64_t i = 0; i < 30; ++i) {
    problems.emplace_back(kForms[i % std::ssize(kForms)], i == 4 ? 0 : 1 + i * 40 % 150, 65, 512,
                          i % 2, i);
  }
  for (size_t i : {6, 8}) {
    problems[i].task.x = problems[2].task.x;
    problems[i].task.rows = std::min(problems[i].task.rows, problems[2].task.rows);
  }
  std::vector<MatMulTask> tasks;
  for (Int8Problem& p : problems) tasks.push_back(p.task);
  std::vector<std::vector<float>> expected;
  for (int threads : {1, 2, 3, 5}) {
    ThreadPool pool(threads);
    const Compute compute(threads == 1 ? Isa::kPortable : GetParam(), pool);
    for (Int8Problem& p : problems) std::ranges::fill(p.y, -77.0f);
    compute.MatMul(tasks);
    for (size_t i = 0; i < problems.size(); ++i) {
      if (threads == 1) expected.push_back(problems[i].y);
      EXPECT_EQ(FirstDifference(problems[i].y, expected[i]), -1) << threads << " threads, " << i;
    }
  }
}

TEST_P(Int8Test, OtherProductsAreThoseOfUpcastWeights) {
  ThreadPool pool(2);
  const Compute compute(GetParam(), pool);
  for (const Form& form : kForms) {
    const int64_t block = form.unit();
    for (int64_t rows : {1, 3, 20, 100}) {
      for (bool extras : {false, true}) {
        Int8Problem f32(form, rows, 37, 2 * block, extras, 3, DType::kF32);
        EXPECT_EQ(FirstDifference(f32.Run(compute), f32.RunUpcast(compute, DType::kF32)), -1)
            << Shape(form, rows, 37, 2 * block);
        for (DType x : {DType::kF32, DType::kBF16}) {
          Int8Problem in_out(form, rows, 3 * block, 50, extras, 9, x, WeightLayout::kInOut);
          EXPECT_EQ(FirstDifference(in_out.Run(compute), in_out.RunUpcast(compute, x)), -1)
              << Shape(form, rows, 3 * block, 50) << " in-out";
        }
      }
    }
  }
}

// A rounding of x is off by half a step of its piece, s / 2.
TEST_P(Int8Test, IsNearTheTruth) {
  for (const Form& form : kForms) {
    constexpr int64_t kIn = 1024, kOut = 20;
    Int8Problem p(form, 3, kOut, kIn, false, 11);
    const std::vector<float> y = p.Run(OpsFor(GetParam()));
    const std::vector<float> w = p.Upcast();
    for (int64_t m = 0; m < 3; ++m) {
      for (int64_t n = 0; n < kOut; ++n) {
        double truth = 0, tolerance = 1e-6;
        for (int64_t b = 0; b < kIn; b += 32) {
          double largest = 0, weights = 0, norm = 0;
          for (int64_t k = b; k < b + 32; ++k) {
            const double x = At(p.x.data(), DType::kBF16, m * kIn + k);
            truth += x * w[n * kIn + k];
            largest = std::max(largest, std::fabs(x));
            weights += std::fabs(w[n * kIn + k]);
            norm += std::fabs(x * w[n * kIn + k]);
          }
          tolerance += weights * largest / 127 * 0.5001 + norm * 1e-5;
        }
        EXPECT_NEAR(y[static_cast<size_t>(m * kOut + n)], truth, tolerance) << form.name;
      }
    }
  }
}

// A GGUF of weights gives the bits of the same weights in safetensors.
TEST_P(Int8Test, BlocksAndScalesBesideGiveTheSameBits) {
  constexpr int64_t kRows = 9, kOut = 35, kIn = 320;
  const Form pairs[][2] = {{{"", DType::kQ8_0}, {"", DType::kI8, DType::kF16, 32}},
                           {{"", DType::kQ4_0}, {"", DType::kI4, DType::kF16, 32}},
                           {{"", DType::kMXFP4}, {"", DType::kE2M1, DType::kU8, 32}}};
  for (const auto& [blocked, scaled] : pairs) {
    Int8Problem p(blocked, kRows, kOut, kIn, false, 41),
        beside(scaled, kRows, kOut, kIn, false, 41);
    const std::byte* block = p.task.w.data;
    auto* elements = const_cast<std::byte*>(beside.task.w.data);
    auto* scales = const_cast<std::byte*>(beside.task.w.scales.data);
    const int64_t bytes = BlockOf(blocked.dtype).bytes;
    const size_t scale_bytes = SizeOf(scaled.scale_dtype);
    for (int64_t b = 0; b < kOut * kIn / 32; ++b, block += bytes, scales += scale_bytes) {
      std::memcpy(scales, block, scale_bytes);
      const std::byte* from = block + scale_bytes;
      if (scaled.dtype == DType::kI8) {
        std::memcpy(elements + b * 32, from, 32);
        continue;
      }
      // Values j and j + 16 share a byte here, 2j and 2j + 1 there.
      const auto nibble = [&](int i) { return from[i % 16] >> (i < 16 ? 0 : 4) & std::byte{15}; };
      for (int j = 0; j < 16; ++j) elements[b * 16 + j] = nibble(2 * j) | nibble(2 * j + 1) << 4;
    }
    EXPECT_EQ(FirstDifference(p.Run(OpsFor(GetParam())), beside.Run(OpsFor(GetParam()))), -1)
        << Name(blocked.dtype);
  }
}

TEST_P(Int8Test, ANanMakesItsRowNan) {
  for (const Form& form : kForms) {
    const int64_t k = 2 * form.unit();
    Int8Problem p(form, 20, 33, k, false, 21);
    const std::vector<float> clean = p.Run(OpsFor(GetParam()));
    std::vector<float> values = p.x_values;
    values[static_cast<size_t>(2 * k + k - 1)] = std::numeric_limits<float>::quiet_NaN();
    values[static_cast<size_t>(17 * k + 7)] = std::numeric_limits<float>::infinity();
    p.x = Stored(values, DType::kBF16);
    p.task.x.data = p.x.data();
    const std::vector<float> y = p.Run(OpsFor(GetParam()));
    for (int64_t m = 0; m < 20; ++m) {
      for (int64_t n = 0; n < 33; ++n) {
        const size_t i = static_cast<size_t>(m * 33 + n);
        EXPECT_TRUE(m == 2 || m == 17 ? std::isnan(y[i]) : SameBits(y[i], clean[i]))
            << form.name << " row " << m;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Isas, Int8Test, testing::ValuesIn(SupportedIsas()), IsaName);

}  // namespace
}  // namespace switchyard::kernels
