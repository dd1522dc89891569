// Experts that lie on a device for as long as somebody computes with them there, by reference.
#pragma once

#include <vector>

#include "services/kernels/cuda/abi.h"

namespace switchyard::device {

struct DeviceExperts {
  SyCudaFfnSpec ffn = {};  // of all of them
  // [layers][experts]: their blocks, as `ffn` has them; empty for layers without experts.
  std::vector<std::vector<const void*>> blocks;
};

}  // namespace switchyard::device
