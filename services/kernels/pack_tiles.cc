#include "services/kernels/pack_tiles.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "services/base/status.h"
#include "services/kernels/blocks.h"

namespace switchyard::kernels {
namespace {

using cuda::Format;
using cuda::TileShape;

constexpr int kChunkBytes = 16;

absl::Status Unsupported(const WeightView& w, std::string_view why) {
  return InvalidArgument(
      "weights of {} {}; CUDA devices take bfloat16, and as rows of outputs "
      "float8_e4m3, int8, int4 and fp4 with scales, Q8_0, Q4_0 and MXFP4",
      Name(w.dtype), why);
}

absl::StatusOr<Format> FormatOf(const WeightView& w) {
  if (w.dtype == DType::kBF16) return Format::kBf16;
  if (w.layout != WeightLayout::kOutIn) return Unsupported(w, "as rows of inputs");
  switch (w.dtype) {
    case DType::kF8E4M3:
      return Format::kE4M3;
    case DType::kI8:
    case DType::kQ8_0:
      return Format::kI8;
    case DType::kI4:
    case DType::kQ4_0:
      return Format::kI4;
    case DType::kE2M1:
    case DType::kMXFP4:
      return Format::kE2M1;
    default:
      return Unsupported(w, "are not supported");
  }
}

// The code of a doubled e2m1.
uint8_t E2M1Code(int doubled) {
  const int8_t* const at = std::find(kE2M1Doubled, kE2M1Doubled + 16, static_cast<int8_t>(doubled));
  return static_cast<uint8_t>(at - kE2M1Doubled);
}

// A row's elements as they lie in tiles, but for the swizzle: `bytes` is zero beyond them.
class RowReader {
 public:
  RowReader(const WeightView& w, const TileShape& shape)
      : w_(w),
        shape_(shape),
        bytes_(static_cast<size_t>(shape.column_tiles()) * cuda::kTileRowBytes) {}

  const std::byte* Read(int64_t row) {
    if (w_.layout == WeightLayout::kInOut) {
      for (int64_t k = 0; k < w_.in; ++k) {
        std::memcpy(bytes_.data() + k * 2, w_.data + (k * w_.stride + row) * 2, 2);
      }
    } else if (cuda::BitsOf(shape_.format) == 4 || IsBlocked(w_.dtype)) {
      ReadSubBlocks(row);
    } else {
      const auto size = static_cast<int64_t>(SizeOf(w_.dtype));
      std::memcpy(bytes_.data(), w_.data + row * w_.stride * size,
                  static_cast<size_t>(w_.in * size));
    }
    return bytes_.data();
  }

 private:
  void ReadSubBlocks(int64_t row) {
    for (int64_t b = 0; b < w_.in / kSubBlock; ++b) {
      SubBlock block;
      ReadSubBlock(w_, row, b, &block);
      if (shape_.format == Format::kI8) {
        std::memcpy(bytes_.data() + b * kSubBlock, block.q, kSubBlock);
        continue;
      }
      const int zero = !w_.scales ? 8 : ZeroAt(w_, row, b * kSubBlock / w_.scales.group_columns);
      const auto code = [&](int i) {
        return shape_.format == Format::kE2M1 ? E2M1Code(block.q[i])
                                              : static_cast<uint8_t>(block.q[i] + zero);
      };
      for (int i = 0; i < kSubBlock; i += 2) {
        bytes_[static_cast<size_t>(b * kSubBlock + i) / 2] =
            static_cast<std::byte>(code(i) | code(i + 1) << 4);
      }
    }
  }

  const WeightView& w_;
  const TileShape& shape_;
  std::vector<std::byte> bytes_;
};

// Of the elements as tiles have them.
float ScaleOf(const WeightView& w, int64_t row, int64_t column) {
  // Doubled in blocks.h, and not here.
  const bool halved =
      w.dtype == DType::kMXFP4 || (w.dtype == DType::kE2M1 && w.scales.dtype == DType::kU8);
  if (w.scales) return ScaleAt(w, row, column / w.scales.group_columns) * (halved ? 2.0f : 1.0f);
  SubBlock block;
  ReadSubBlock(w, row, column / kSubBlock, &block);
  return block.d * (halved ? 2.0f : 1.0f);
}

void WriteScales(const WeightView& w, const TileShape& shape, int32_t row, int32_t at,
                 std::byte* tiles) {
  if (shape.group == 0 || (shape.group_rows > 1 && at % 8 != 0)) return;
  const int32_t step = std::min(shape.group, shape.tile_columns());
  for (int32_t k = 0; k < shape.columns; k += step) {
    const float scale = ScaleOf(w, row, k);
    std::memcpy(tiles + ScaleByte(shape, at, k), &scale, sizeof(scale));
    if (!shape.zeros) continue;
    const uint32_t zero = cuda::ZeroWord(ZeroAt(w, row, k / w.scales.group_columns));
    std::memcpy(tiles + ZeroByte(shape, at, k), &zero, sizeof(zero));
  }
}

}  // namespace

absl::StatusOr<TileShape> TileShapeOf(const WeightView& w) {
  TileShape shape{.rows = static_cast<int32_t>(w.out), .columns = static_cast<int32_t>(w.in)};
  SY_ASSIGN_OR_RETURN(shape.format, FormatOf(w));
  if (w.in % 8 != 0) return Unsupported(w, fmt::format("with {} inputs, no multiple of 8", w.in));
  if (shape.format == Format::kBf16) return shape;
  if (w.in % kSubBlock != 0) {
    return Unsupported(w, fmt::format("with {} inputs, no multiple of {}", w.in, kSubBlock));
  }
  if (!w.scales) {
    shape.group = kSubBlock;
    return shape;
  }
  const int64_t columns = w.scales.group_columns;
  const bool one = columns >= w.in;  // scale for the whole row
  if (!one && (columns % kSubBlock != 0 ||
               (shape.tile_columns() % columns != 0 && columns % shape.tile_columns() != 0))) {
    return Unsupported(w, fmt::format("with a scale for {} inputs", columns));
  }
  shape.group = one ? shape.tile_columns() : static_cast<int32_t>(columns);
  shape.zeros = shape.format == Format::kI4 && w.scales.zeros != nullptr;
  const bool eights = w.scales.group_rows % 8 == 0 && w.scales.first_row % 8 == 0;
  shape.group_rows = eights ? 8 : 1;
  return shape;
}

void PackTiles(const WeightView& w, const TileShape& shape, const RowPlace& place,
               std::byte* tiles) {
  RowReader reader(w, shape);
  for (int32_t row = 0; row < w.out; ++row) {
    const int32_t at = place(row);
    const std::byte* const from = reader.Read(row);
    const int r = at % cuda::kTileRows;
    for (int32_t tile = 0; tile < shape.column_tiles(); ++tile) {
      std::byte* const to =
          tiles + TileByte(shape, at, tile * shape.tile_columns()) + r * cuda::kTileRowBytes;
      for (int chunk = 0; chunk < cuda::kTileRowBytes / kChunkBytes; ++chunk) {
        std::memcpy(to + cuda::SwizzledChunk(r, chunk) * kChunkBytes,
                    from + tile * cuda::kTileRowBytes + chunk * kChunkBytes, kChunkBytes);
      }
    }
    WriteScales(w, shape, row, at, tiles);
  }
}

}  // namespace switchyard::kernels
