// The name of a test that runs once for each instruction set: gtest takes no hyphens.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <string>

#include "services/kernels/kernels.h"

namespace switchyard {

inline std::string IsaName(const testing::TestParamInfo<kernels::Isa>& info) {
  std::string name(kernels::Name(info.param));
  std::ranges::replace(name, '-', '_');
  return name;
}

}  // namespace switchyard
