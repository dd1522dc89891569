// What a token gets where an expert that its gate chose is gone: no worker has held it for as long
// as rows wait for one. A row without such an expert keeps its bits.
//
// Pure; any thread.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "services/model/spec.h"

namespace switchyard::router {

enum class LostExperts : uint8_t {
  kFail,         // the sequences that need it end
  kRenormalise,  // the others of its choice, weighed up to the sum that all of them had
  kNextBest,  // those that the gate would choose if there were no others than those that are here
};

// "fail", "renormalise", "next-best".
std::string_view Name(LostExperts how);

// The choice of one row in a layer, as the gate or a policy has left it.
struct GateRow {
  std::span<const float> scores;  // [experts], and what is behind them: SelectExperts' `logits`
  std::span<const float> correction_bias;
  float* scratch = nullptr;  // of SelectExperts
  std::span<int32_t> ids;    // ascending, then kNoExpert
  float* weights = nullptr;  // as many
};

// Replaces the experts of the row that are `gone` [experts]. Whether there was one. Fewer may be
// left, or none.
bool ReplaceGone(LostExperts how, const GateSpec& gate, std::span<const uint8_t> gone, GateRow row);

}  // namespace switchyard::router
