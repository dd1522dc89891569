#include "services/expertwire/numerics_id.h"

#include <fmt/format.h>
#include <xxhash.h>

#include "services/expertwire/layout.h"

namespace switchyard::expertwire {

std::string NumericsId(std::string_view model_fingerprint, std::string_view dtype,
                       std::string_view arithmetic) {
  const std::string all = fmt::format("{}\n{}\n{}\ntree {}\n", model_fingerprint, dtype, arithmetic,
                                      kReductionTreeVersion);
  return fmt::format("{:016x}", XXH64(all.data(), all.size(), 0));
}

std::string NumericsId(const NumericsClass& numerics) {
  return NumericsId(numerics.model_fingerprint, Name(numerics.activations), numerics.arithmetic);
}

}  // namespace switchyard::expertwire
