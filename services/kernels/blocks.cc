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

}  // namespace

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
