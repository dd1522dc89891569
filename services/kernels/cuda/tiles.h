// How weights of experts lie in device memory: as tiles of 64 outputs by 128 bytes of inputs, each
// with its scales behind it, one after the other along the inputs. A block of threads streams the
// tiles of its outputs from end to end, and copies each as it is.
//
//   tile     64 rows of 128 bytes: 64 inputs of bf16, 128 of 8 bits, 256 of 4 bits. Chunk c of 16
//            bytes of row r lies at place SwizzledChunk(r, c), which is how wgmma reads memory that
//            is swizzled by 128 bytes; warps of mma.sync take rows in the order of SpreadRow, for
//            which it is free of bank conflicts too. So one layout serves every GPU.
//            Then the scales: [groups][64] or, where eight rows share one, [groups][8] of float32;
//            then, with zero points, [groups][64] words.
//   outputs  are padded to 64 with zeros, inputs to whole tiles.
//   gate, up rows 16i to 16i+7 are of gate, 16i+8 to 16i+15 of up (of the same outputs): the thread
//            that has one has the other.
//
// Numbers of fewer bits than bf16 are taken for exact bf16 numbers, summed in float32 over the
// inputs of a group, and the sum is multiplied by the group's scale.
//
// Plain C++: for host and device.
#pragma once

#include <cstddef>
#include <cstdint>

#ifdef __CUDACC__
#define SY_CUDA_BOTH __host__ __device__
#else
#define SY_CUDA_BOTH
#endif

namespace switchyard::cuda {

// The order is that of SyCudaFormat (abi.h).
enum class Format : int32_t { kBf16, kE4M3, kI8, kI4, kE2M1 };

inline constexpr int kTileRows = 64;
inline constexpr int kTileRowBytes = 128;
inline constexpr int kTileElementBytes = kTileRows * kTileRowBytes;
inline constexpr int kSlab = 32;  // inputs that two products of matrices take

SY_CUDA_BOTH constexpr int BitsOf(Format format) {
  switch (format) {
    case Format::kBf16:
      return 16;
    case Format::kE4M3:
    case Format::kI8:
      return 8;
    default:
      return 4;
  }
}
SY_CUDA_BOTH constexpr int TileColumns(Format format) { return kTileRowBytes * 8 / BitsOf(format); }

SY_CUDA_BOTH constexpr int SwizzledChunk(int row, int chunk) { return chunk ^ (row & 7); }

// The row, of eight, for the i-th group of lanes of mma.sync: lanes that read at the same time are
// of few neighbouring i and of neighbouring chunks, and rows of such i differ in their high bits.
SY_CUDA_BOTH constexpr int SpreadRow(int i) { return (i & 1) << 2 | (i & 2) | (i & 4) >> 2; }

// A matrix [rows, columns] as tiles.
struct TileShape {
  Format format = Format::kBf16;
  int32_t rows = 0, columns = 0;
  int32_t group = 0;       // columns that share a scale, a multiple of kSlab; 0: no scales
  int32_t group_rows = 1;  // rows that do: 1, or 8 (and any more, repeated)
  bool zeros = false;      // kI4: each group of a row has a zero point

  bool operator==(const TileShape&) const = default;
  SY_CUDA_BOTH int32_t tile_columns() const { return TileColumns(format); }
  SY_CUDA_BOTH int32_t row_tiles() const { return (rows + kTileRows - 1) / kTileRows; }
  SY_CUDA_BOTH int32_t column_tiles() const {
    return (columns + tile_columns() - 1) / tile_columns();
  }
  // Groups of a tile: at least one, as a tile is the most that is summed before it is scaled.
  SY_CUDA_BOTH int32_t groups() const {
    return group == 0 ? 0 : group >= tile_columns() ? 1 : tile_columns() / group;
  }
  SY_CUDA_BOTH int32_t scales_a_group() const { return group_rows == 1 ? kTileRows : 8; }
  SY_CUDA_BOTH size_t zeros_offset() const {
    return kTileElementBytes + sizeof(float) * static_cast<size_t>(groups() * scales_a_group());
  }
  SY_CUDA_BOTH size_t tile_bytes() const {
    return zeros_offset() +
           (zeros ? sizeof(uint32_t) * static_cast<size_t>(groups()) * kTileRows : 0);
  }
  SY_CUDA_BOTH size_t bytes() const {
    return tile_bytes() * static_cast<size_t>(row_tiles()) * static_cast<size_t>(column_tiles());
  }
};

// Where the tile of an element begins, in bytes from the matrix's first, and the element's group
// there.
SY_CUDA_BOTH inline size_t TileByte(const TileShape& shape, int32_t row, int32_t column) {
  const size_t tile =
      static_cast<size_t>(row / kTileRows) * static_cast<size_t>(shape.column_tiles()) +
      static_cast<size_t>(column / shape.tile_columns());
  return tile * shape.tile_bytes();
}
SY_CUDA_BOTH inline int32_t GroupOfTile(const TileShape& shape, int32_t column) {
  const int32_t columns = shape.tile_columns();
  return shape.group >= columns ? 0 : column % columns / shape.group;
}

// Where the bits of an element begin in a matrix's tiles, in bits from its first byte.
SY_CUDA_BOTH inline size_t ElementBit(const TileShape& shape, int32_t row, int32_t column) {
  const int32_t r = row % kTileRows, k = column % shape.tile_columns();
  const int32_t bit = k * BitsOf(shape.format);
  const int32_t chunk = SwizzledChunk(r, bit / 128);
  return TileByte(shape, row, column) * 8 +
         static_cast<size_t>(r * kTileRowBytes * 8 + chunk * 128 + bit % 128);
}

// Where the scale of an element lies, in bytes from the matrix's first. Zero points, where there
// are any, lie alike from zeros_offset() on, one for each row.
SY_CUDA_BOTH inline size_t ScaleByte(const TileShape& shape, int32_t row, int32_t column) {
  const int32_t r = row % kTileRows;
  const int32_t at =
      GroupOfTile(shape, column) * shape.scales_a_group() + (shape.group_rows == 1 ? r : r / 8);
  return TileByte(shape, row, column) + kTileElementBytes + sizeof(float) * static_cast<size_t>(at);
}
SY_CUDA_BOTH inline size_t ZeroByte(const TileShape& shape, int32_t row, int32_t column) {
  const int32_t at = GroupOfTile(shape, column) * kTileRows + row % kTileRows;
  return TileByte(shape, row, column) + shape.zeros_offset() +
         sizeof(uint32_t) * static_cast<size_t>(at);
}

// The row of gate (or of up) among the rows that are both.
SY_CUDA_BOTH constexpr int32_t GateUpRow(int32_t row, bool up) {
  return row / 8 * 16 + (up ? 8 : 0) + row % 8;
}

// A zero point as kernels take it: two bf16 of 128 + zero.
SY_CUDA_BOTH constexpr uint32_t ZeroWord(int32_t zero) {
  return (0x4300u + static_cast<uint32_t>(zero)) * 0x10001u;
}

}  // namespace switchyard::cuda
