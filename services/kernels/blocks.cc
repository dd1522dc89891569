#include "services/kernels/blocks.h"

#include "services/base/check.h"

namespace switchyard::kernels {
namespace {

const uint8_t* Bytes(const std::byte* p) { return reinterpret_cast<const uint8_t*>(p); }

void ReadQ8_0(const std::byte* row, int64_t b, SubBlock* out) {
  const std::byte* block = row + b * 34;
  out->d = LoadF16(block);
  std::memcpy(out->q, block + 2, kSubBlock);
}

// 16 bytes: the low nibbles, then the high ones.
void ReadNibbles(const uint8_t* bytes, int8_t* q) {
  for (int i = 0; i < 16; ++i) q[i] = static_cast<int8_t>(bytes[i] & 15);
  for (int i = 0; i < 16; ++i) q[16 + i] = static_cast<int8_t>(bytes[i] >> 4);
}

void ReadQ4_0(const std::byte* row, int64_t b, SubBlock* out) {
  const std::byte* block = row + b * 18;
  out->d = LoadF16(block);
  ReadNibbles(Bytes(block) + 2, out->q);
  for (int8_t& q : out->q) q = static_cast<int8_t>(q - 8);
}

void ReadMXFP4(const std::byte* row, int64_t b, SubBlock* out) {
  const uint8_t* block = Bytes(row) + b * 17;
  out->d = E8M0Half(block[0]);
  ReadNibbles(block + 1, out->q);
  for (int8_t& q : out->q) q = kE2M1Doubled[q];
}

// d, dmin and the six bits of Q4_K and Q5_K.
void ReadScales(const std::byte* block, int j, SubBlock* out) {
  const SixBits six = SixBitsAt(Bytes(block) + 4, j);
  out->d = LoadF16(block) * static_cast<float>(six.scale);
  out->min = LoadF16(block + 2) * static_cast<float>(six.min);
}

void ReadQ4K(const std::byte* row, int64_t b, SubBlock* out) {
  const std::byte* block = row + b / 8 * 144;
  const int j = static_cast<int>(b % 8);
  ReadScales(block, j, out);
  const uint8_t* low = Bytes(block) + 16 + j / 2 * 32;
  const int shift = j % 2 * 4;
  for (int i = 0; i < 32; ++i) out->q[i] = static_cast<int8_t>(low[i] >> shift & 15);
}

void ReadQ5K(const std::byte* row, int64_t b, SubBlock* out) {
  const std::byte* block = row + b / 8 * 176;
  const int j = static_cast<int>(b % 8);
  ReadScales(block, j, out);
  const uint8_t *high = Bytes(block) + 16, *low = Bytes(block) + 48 + j / 2 * 32;
  const int shift = j % 2 * 4;
  for (int i = 0; i < 32; ++i) {
    out->q[i] = static_cast<int8_t>((low[i] >> shift & 15) | (high[i] >> j & 1) << 4);
  }
}

void ReadQ6K(const std::byte* row, int64_t b, SubBlock* out) {
  const std::byte* block = row + b / 8 * 210;
  const int j = static_cast<int>(b % 8), half = j / 4, quarter = j % 4;
  const uint8_t* low = Bytes(block) + half * 64 + quarter % 2 * 32;
  const uint8_t* high = Bytes(block) + 128 + half * 32;
  const int shift = quarter / 2 * 4;
  for (int i = 0; i < 32; ++i) {
    const int q = (low[i] >> shift & 15) | (high[i] >> 2 * quarter & 3) << 4;
    out->q[i] = static_cast<int8_t>(q - 32);
  }
  const int8_t* scales = reinterpret_cast<const int8_t*>(block + 192);
  out->scale[0] = scales[2 * j];
  out->scale[1] = scales[2 * j + 1];
  out->d = LoadF16(block + 208);
}

uint32_t WordAt(const std::byte* words, int64_t i) {
  uint32_t word;
  std::memcpy(&word, words + 4 * i, sizeof(word));
  return word;
}

// The eight nibbles of a word.
void SplitWord(uint32_t word, int8_t* q) {
  for (int i = 0; i < 8; ++i) q[i] = static_cast<int8_t>(word >> 4 * i & 15);
}

// Elements k0..k0+31 of a row of nibbles, as they are stored.
void ReadNibbles(const WeightView& w, int64_t row, int64_t k0, int8_t* q) {
  const int64_t r = w.scales.first_row + row;
  switch (w.packing) {
    case Packing::kRows:
      for (int i = 0; i < 32; i += 8) {
        SplitWord(WordAt(w.data + BytesOf(w.dtype, row * w.stride + k0 + i), 0), q + i);
      }
      return;
    case Packing::kGptq:
      for (int i = 0; i < 32; i += 8) SplitWord(WordAt(w.data, (k0 + i) / 8 * w.stride + r), q + i);
      return;
    case Packing::kAwq:
      for (int i = 0; i < 32; ++i) {
        const uint32_t word = WordAt(w.data, (k0 + i) * w.stride + r / 8);
        q[i] = static_cast<int8_t>(word >> 4 * kAwqNibble[r % 8] & 15);
      }
  }
}

}  // namespace

float ScaleAt(const WeightView& w, int64_t row, int64_t g) {
  const WeightScales& s = w.scales;
  const int64_t i = (s.first_row + row) / s.group_rows * s.row_stride + g * s.column_stride;
  switch (s.dtype) {
    case DType::kBF16:
      return ToFloat(reinterpret_cast<const bf16*>(s.data)[i]);
    case DType::kF16:
      return ToFloat(reinterpret_cast<const f16*>(s.data)[i]);
    case DType::kU8:
      return E8M0Half(Bytes(s.data)[i]);
    default:
      return reinterpret_cast<const float*>(s.data)[i];
  }
}

int ZeroAt(const WeightView& w, int64_t row, int64_t g) {
  const WeightScales& s = w.scales;
  if (s.zeros == nullptr) return w.dtype == DType::kI4 ? 8 : 0;
  const int64_t r = s.first_row + row;
  const uint32_t word = WordAt(s.zeros, r / 8 * s.zero_row_stride + g * s.zero_column_stride);
  const int64_t nibble = w.packing == Packing::kAwq ? kAwqNibble[r % 8] : r % 8;
  return static_cast<int>(word >> 4 * nibble & 15) + s.zero_offset;
}

void ReadSubBlock(const WeightView& w, int64_t row, int64_t b, SubBlock* out) {
  if (!w.scales) return ReadSubBlock(w.dtype, w.data + row * BytesOf(w.dtype, w.stride), b, out);
  const int64_t g = b * kSubBlock / w.scales.group_columns;
  out->scale[0] = out->scale[1] = 1;
  out->min = 0;
  out->d = ScaleAt(w, row, g);
  if (w.dtype == DType::kI8) {
    std::memcpy(out->q, w.data + row * w.stride + b * kSubBlock, kSubBlock);
    return;
  }
  ReadNibbles(w, row, b * kSubBlock, out->q);
  const int zero = ZeroAt(w, row, g);
  for (int8_t& q : out->q) {
    q = static_cast<int8_t>(w.dtype == DType::kE2M1 ? kE2M1Doubled[q] : q - zero);
  }
}

void ReadSubBlock(DType dtype, const std::byte* row, int64_t b, SubBlock* out) {
  out->scale[0] = out->scale[1] = 1;
  out->min = 0;
  switch (dtype) {
    case DType::kQ8_0:
      return ReadQ8_0(row, b, out);
    case DType::kQ4_0:
      return ReadQ4_0(row, b, out);
    case DType::kMXFP4:
      return ReadMXFP4(row, b, out);
    case DType::kQ4K:
      return ReadQ4K(row, b, out);
    case DType::kQ5K:
      return ReadQ5K(row, b, out);
    case DType::kQ6K:
      return ReadQ6K(row, b, out);
    default:
      SY_CHECK(false);
  }
}

void SubBlockToFloat(const SubBlock& block, float* out) {
  for (int half = 0; half < 2; ++half) {
    // Exact: 11 and 8 bits.
    const float d = block.d * static_cast<float>(block.scale[half]);
    for (int i = 16 * half; i < 16 * half + 16; ++i) {
      out[i] = d * static_cast<float>(block.q[i]) - block.min;
    }
  }
}

}  // namespace switchyard::kernels
