// models/tiny-r1 and the conversations that it never saw, for tests; each loaded once.
#pragma once

#include <gtest/gtest.h>

#include <vector>

#include "tests/support/golden.h"
#include "tests/support/heldout.h"

namespace switchyard::test {

inline const LoadedModel& TinyR1() {
  static const LoadedModel model(SourcePath("models/tiny-r1"));
  return model;
}

inline const std::vector<Conversation>& HeldoutOfTinyR1() {
  static const std::vector<Conversation> heldout = [] {
    const auto tokenizer = Tokenizer::Load(SourcePath("models/tiny-r1"));
    EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
    return LoadHeldout(SourcePath("tests/golden/heldout/tiny-r1.json"), **tokenizer);
  }();
  return heldout;
}

}  // namespace switchyard::test
