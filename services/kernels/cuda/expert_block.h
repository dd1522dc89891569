// How one expert's weights lie in a block of device memory (abi.h, SyCudaFfnSpec). Plain C++.
#pragma once

#include "services/kernels/cuda/abi.h"
#include "services/kernels/cuda/tiles.h"

namespace switchyard::cuda {

inline constexpr size_t kPartAlignment = 1024;

inline TileShape ShapeOf(const SyCudaMatrix& m) {
  return {.format = static_cast<Format>(m.format),
          .rows = m.rows,
          .columns = m.columns,
          .group = m.group,
          .group_rows = m.group_rows,
          .zeros = m.zeros != 0};
}

struct ExpertBlock {
  explicit ExpertBlock(const SyCudaFfnSpec& spec)
      : gate_up(ShapeOf(spec.gate_up)), down(ShapeOf(spec.down)) {
    const auto part = [this](size_t part_bytes) {
      const size_t at = bytes;
      bytes += (part_bytes + kPartAlignment - 1) / kPartAlignment * kPartAlignment;
      return at;
    };
    const auto bias = [&](const TileShape& shape) {
      return spec.bias == 0
                 ? size_t{0}
                 : part(sizeof(float) * kTileRows * static_cast<size_t>(shape.row_tiles()));
    };
    part(gate_up.bytes());
    down_at = part(down.bytes());
    gate_up_bias_at = bias(gate_up);
    down_bias_at = bias(down);
  }

  TileShape gate_up, down;
  // Bytes from the block's first, at which gate and up lie; biases are at 0 where there are none.
  size_t down_at = 0, gate_up_bias_at = 0, down_bias_at = 0;
  size_t bytes = 0;
};

}  // namespace switchyard::cuda
