#include "tools/quantize/matrix_codec.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "services/base/ceil_div.h"
#include "services/base/check.h"

namespace switchyard::quantize {
namespace {

constexpr int64_t kBlock = 128;  // of fp8
constexpr float kInt4Range = 7.5f;
// Of the scale that holds the largest number.
constexpr float kClips[] = {1.0f,   0.975f, 0.95f,  0.925f, 0.9f,   0.875f, 0.85f,
                            0.825f, 0.8f,   0.775f, 0.75f,  0.725f, 0.7f};

float MaxMagnitude(const float* w, int64_t n) {
  float max = 0;
  for (int64_t i = 0; i < n; ++i) max = std::max(max, std::fabs(w[i]));
  return max;
}

// Where a matrix is nothing but zeros any scale will do.
bf16 ScaleOf(float value) { return ToBF16(value > 0 ? value : 1.0f); }

// Σ (w - kept)², Σ w² over a row, before its columns were scaled.
ErrorSum ErrorOf(const MatrixTask& task, const float* w, const float* kept, int64_t first,
                 int64_t n) {
  ErrorSum sum;
  for (int64_t i = 0; i < n; ++i) {
    const double by = task.column_scale != nullptr ? task.column_scale[first + i] : 1.0;
    const double lost = (w[i] - kept[i]) / by, all = w[i] / by;
    sum.error += lost * lost;
    sum.norm += all * all;
  }
  return sum;
}

template <typename T>
T* Bytes(std::vector<std::byte>& data) {
  return reinterpret_cast<T*>(data.data());
}

ErrorSum EncodeInt8Row(const MatrixTask& task, int64_t row, std::vector<std::byte>* data) {
  const float* w = task.w + row * task.in;
  const bf16 scale = ScaleOf(MaxMagnitude(w, task.in) / 127.0f);
  const float by = ToFloat(scale);
  Bytes<bf16>(data[1])[row] = scale;
  int8_t* out = Bytes<int8_t>(data[0]) + row * task.in;
  ErrorSum sum;
  for (int64_t i = 0; i < task.in; ++i) {
    const float q = std::clamp(std::nearbyint(w[i] / by), -128.0f, 127.0f);
    out[i] = static_cast<int8_t>(q);
    const float kept = q * by;
    sum.Add(ErrorOf(task, w + i, &kept, i, 1));
  }
  return sum;
}

// What a group would lose with this scale.
float Int4Loss(const float* w, const float* importance, int64_t n, float scale) {
  const float inverse = 1.0f / scale;
  float loss = 0;
  for (int64_t i = 0; i < n; ++i) {
    const float lost = w[i] - RoundInt4(w[i] * inverse) * scale;
    loss += lost * lost * (importance != nullptr ? importance[i] : 1.0f);
  }
  return loss;
}

bf16 BestInt4Scale(const float* w, const float* importance, int64_t n) {
  const float plain = PlainInt4Scale(w, n);
  bf16 best = ScaleOf(plain);
  float least = std::numeric_limits<float>::infinity();
  for (const float clip : kClips) {
    const bf16 scale = ScaleOf(plain * clip);
    const float loss = Int4Loss(w, importance, n, ToFloat(scale));
    if (loss < least) least = loss, best = scale;
  }
  return best;
}

ErrorSum EncodeInt4Row(const MatrixTask& task, int64_t group, int64_t row,
                       std::vector<std::byte>* data) {
  const float* w = task.w + row * task.in;
  uint32_t* words = Bytes<uint32_t>(data[0]) + row * task.in / 8;
  bf16* scales = Bytes<bf16>(data[1]) + row * task.in / group;
  ErrorSum sum;
  for (int64_t first = 0; first < task.in; first += group) {
    const float* importance = task.importance != nullptr ? task.importance + first : nullptr;
    const bf16 scale = BestInt4Scale(w + first, importance, group);
    scales[first / group] = scale;
    const float by = ToFloat(scale), inverse = 1.0f / by;
    for (int64_t i = first; i < first + group; ++i) {
      const float q = RoundInt4(w[i] * inverse), kept = q * by;
      words[i / 8] |= static_cast<uint32_t>(static_cast<int>(q) + 8) << (4 * (i % 8));
      sum.Add(ErrorOf(task, w + i, &kept, i, 1));
    }
  }
  return sum;
}

// Rows [row, row + kBlock) of fp8.
ErrorSum EncodeFp8Rows(const MatrixTask& task, int64_t block, std::vector<std::byte>* data) {
  const int64_t begin = block * kBlock, end = std::min(begin + kBlock, task.out);
  uint8_t* out = Bytes<uint8_t>(data[0]);
  float* scales = Bytes<float>(data[1]) + block * CeilDiv(task.in, kBlock);
  ErrorSum sum;
  for (int64_t first = 0; first < task.in; first += kBlock) {
    const int64_t n = std::min(kBlock, task.in - first);
    float max = 0;
    for (int64_t r = begin; r < end; ++r) {
      max = std::max(max, MaxMagnitude(task.w + r * task.in + first, n));
    }
    const float by = max > 0 ? max / 448.0f : 1.0f;
    scales[first / kBlock] = by;
    for (int64_t r = begin; r < end; ++r) {
      for (int64_t i = first; i < first + n; ++i) {
        const f8e4m3 q = ToF8E4M3(task.w[r * task.in + i] / by);
        out[r * task.in + i] = q.bits;
        const float kept = ToFloat(q) * by;
        sum.Add(ErrorOf(task, task.w + r * task.in + i, &kept, i, 1));
      }
    }
  }
  return sum;
}

}  // namespace

uint64_t StoredTensor::bytes() const {
  int64_t elements = 1;
  for (const int64_t size : shape) elements *= size;
  return static_cast<uint64_t>(BytesOf(dtype, elements));
}

double ErrorSum::Relative() const { return norm > 0 ? std::sqrt(error / norm) : 0; }

float PlainInt4Scale(const float* w, int64_t n) { return MaxMagnitude(w, n) / kInt4Range; }

std::vector<StoredTensor> StoredAs(const Format& format, std::string_view weight, int64_t out,
                                   int64_t in) {
  const std::string name(weight);
  switch (format.scheme) {
    case Scheme::kInt8:
      return {{name, DType::kI8, {out, in}}, {name + "_scale", DType::kBF16, {out, 1}}};
    case Scheme::kInt4:
    case Scheme::kInt4Awq:
      return {{name + "_packed", DType::kI32, {out, in / 8}},
              {name + "_scale", DType::kBF16, {out, in / format.group}},
              {name + "_shape", DType::kI64, {2}}};
    case Scheme::kFp8:
      return {{name, DType::kF8E4M3, {out, in}},
              {name + "_scale_inv", DType::kF32, {CeilDiv(out, kBlock), CeilDiv(in, kBlock)}}};
  }
  return {};
}

ErrorSum Encode(const Format& format, const MatrixTask& task, kernels::ThreadPool& pool,
                std::vector<std::vector<std::byte>>* data) {
  const std::vector<StoredTensor> tensors = StoredAs(format, "", task.out, task.in);
  data->resize(tensors.size());
  for (size_t i = 0; i < tensors.size(); ++i) {
    (*data)[i].assign(static_cast<size_t>(tensors[i].bytes()), std::byte{0});
  }
  std::vector<std::byte>* parts = data->data();
  const bool fp8 = format.scheme == Scheme::kFp8, int8 = format.scheme == Scheme::kInt8;
  SY_CHECK(fp8 || int8 || (format.group % 8 == 0 && task.in % format.group == 0));
  const int64_t items = fp8 ? CeilDiv(task.out, kBlock) : task.out;
  std::vector<ErrorSum> errors(static_cast<size_t>(items));
  pool.ParallelFor(items, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      errors[static_cast<size_t>(i)] = fp8    ? EncodeFp8Rows(task, i, parts)
                                       : int8 ? EncodeInt8Row(task, i, parts)
                                              : EncodeInt4Row(task, format.group, i, parts);
    }
  });
  if (!fp8 && !int8) {
    const int64_t shape[] = {task.out, task.in};
    std::memcpy(parts[2].data(), shape, sizeof shape);
  }
  ErrorSum sum;
  for (const ErrorSum& error : errors) sum.Add(error);
  return sum;
}

}  // namespace switchyard::quantize
