// A checkpoint's backbone as the CUDA plugin takes it (services/kernels/cuda/backbone_abi.h): every
// weight packed into the device's tiles and put there.
#pragma once

#include <cstddef>
#include <functional>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "router/graph/weights.h"
#include "services/kernels/cuda/backbone_abi.h"
#include "services/model/spec.h"

namespace switchyard::router {

// Where it goes.
struct BackbonePlace {
  // Copies bytes to the device; where they lie there, aligned to 16, for as long as the backbone.
  std::function<absl::StatusOr<void*>(std::span<const std::byte>)> put;
  int64_t positions = 0;  // that a sequence may have
};

struct PackedBackbone {
  SyCudaBackboneSpec spec = {};
  std::vector<SyCudaLayer> layers;
};

// The sizes of a backbone, without pointers.
SyCudaBackboneSpec SizesOf(const ModelSpec& spec, int64_t positions);

// Of a cache in bf16.
int64_t DeviceKvBytes(const ModelSpec& spec, int64_t blocks);

// Says where the cache of so many blocks lies: DeviceKvBytes of the device, aligned to 64, in the
// order of KvStorage: a slot's blocks one after the other.
void PlaceCache(const ModelSpec& spec, std::byte* cache, int64_t blocks, PackedBackbone* backbone);

// Without a cache. INVALID_ARGUMENT names a weight of a form that devices do not take. Of float32
// and float16 those are taken whose numbers are all bf16's: nothing is rounded here. Errors of
// `put` are given on.
absl::StatusOr<PackedBackbone> PackBackbone(const ModelSpec& spec, const RouterWeights& weights,
                                            const BackbonePlace& place);

}  // namespace switchyard::router
