// The registers of AMX. What they hold is configured once a thread for each kind of product:
// configuring takes longer than many a product, and nothing but the kernels uses tiles.
#pragma once

#include <cstdint>

namespace switchyard::kernels {

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

// `config` must live as long as the process.
inline void ConfigureTiles(const TileConfig& config) {
  thread_local const TileConfig* current = nullptr;
  if (current == &config) return;
  __asm__ volatile("ldtilecfg %0" ::"m"(config));
  current = &config;
}

}  // namespace switchyard::kernels

// The compiler's own intrinsics do not say that a load reads memory.
#define SY_TILE_LOAD(tile, base, stride) \
  __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #tile ::"r"(base), "r"(stride) : "memory")
#define SY_TILE_STORE(tile, base, stride) \
  __asm__ volatile("tilestored %%tmm" #tile ", (%0,%1,1)" ::"r"(base), "r"(stride) : "memory")
#define SY_TILE_ZERO(tile) __asm__ volatile("tilezero %%tmm" #tile ::)
