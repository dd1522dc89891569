// models/tiny-r1 as a gateway serves it, loaded once a process, and ids of its tokenizer.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

#include "gateway/streams/served_model.h"

namespace switchyard::testing {

inline std::string TinyR1Dir() {
  return std::string(std::getenv("SWITCHYARD_SOURCE_DIR")) + "/models/tiny-r1";
}

inline const gateway::ServedModel& TinyR1() {
  static const gateway::ServedModel* const model =
      gateway::ServedModel::Load(TinyR1Dir(), "").value().release();
  return *model;
}

inline std::vector<int32_t> Ids(const std::string& text) {
  return TinyR1().tokenizer().Encode(text, {.add_special_tokens = false}).value();
}

inline int32_t IdOf(const std::string& token) { return TinyR1().tokenizer().IdOf(token).value(); }

}  // namespace switchyard::testing
