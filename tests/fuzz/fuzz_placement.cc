// Placement documents. What is read can be written and read again; what fits a small model expands
// to an index whose two views agree.
#include <algorithm>
#include <cstdint>
#include <string_view>

#include "services/base/check.h"
#include "services/placement/document.h"

namespace switchyard::placement {
namespace {

void Use(const v1::Placement& document) {
  const auto again = Parse(ToJson(document));
  SY_CHECK(again.ok());
  SY_CHECK(again->SerializeAsString() == document.SerializeAsString());

  const ExpertGrid grid{.moe_layers = {false, true, true, true}, .experts = 8};
  const auto index = Expand(document, grid, "");
  if (!index.ok()) return;
  for (int layer = 0; layer < grid.layers(); ++layer) {
    for (int expert = 0; expert < grid.experts; ++expert) {
      const auto replicas = index->replicas(layer, expert);
      for (size_t w = 0; w < index->workers().size(); ++w) {
        SY_CHECK(index->workers()[w].held[grid.cell(layer, expert)] ==
                 (std::ranges::count(replicas, w) == 1));
      }
    }
  }
  v1::Placement compact = document;
  for (size_t w = 0; w < index->workers().size(); ++w) {
    SetHolds(index->workers()[w].held, grid, 0, compact.mutable_workers(static_cast<int>(w)));
  }
  const auto same = Expand(compact, grid, "");
  SY_CHECK(same.ok());
  for (size_t w = 0; w < index->workers().size(); ++w) {
    SY_CHECK(same->workers()[w].held == index->workers()[w].held);
  }
}

}  // namespace
}  // namespace switchyard::placement

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace switchyard::placement;
  const auto document = Parse({reinterpret_cast<const char*>(data), size});
  if (document.ok()) Use(*document);
  return 0;
}
