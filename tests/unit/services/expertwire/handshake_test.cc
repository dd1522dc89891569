#include "services/expertwire/handshake.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace switchyard::expertwire {
namespace {

using ::testing::HasSubstr;

pb::Hello Make(const std::string& id, NumericsClass numerics, bool mixed = false) {
  return MakeHello(id, numerics, {}, mixed);
}

const NumericsClass kMine{"abc", DType::kBF16, "bf16-fma"};

TEST(Handshake, EqualNumericsPass) {
  EXPECT_TRUE(CheckPeer(Make("router-1", kMine), Make("worker-2", kMine)).ok());
}

TEST(Handshake, EveryDifferenceIsRefusedAndNamesBothSides) {
  NumericsClass model = kMine, dtype = kMine, arithmetic = kMine;
  model.model_fingerprint = "def";
  dtype.activations = DType::kF32;
  arithmetic.arithmetic = "bf16-avx512bf16";
  pb::Hello wire = Make("worker-2", kMine), unknown = wire;
  wire.set_wire_version(2);
  unknown.set_numerics_id("0123");  // something that its fields do not tell
  const std::pair<pb::Hello, std::string> cases[] = {{Make("worker-2", model), "fingerprint"},
                                                     {Make("worker-2", dtype), "dtype"},
                                                     {Make("worker-2", arithmetic), "arithmetic"},
                                                     {wire, "wire version"},
                                                     {unknown, "numerics id"}};
  for (const auto& [hello, field] : cases) {
    const absl::Status status = CheckPeer(Make("router-1", kMine), hello);
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
    for (const std::string& part : {field, std::string("router-1"), std::string("worker-2")}) {
      EXPECT_THAT(std::string(status.message()), HasSubstr(part));
    }
  }
}

TEST(Handshake, MixedNumericsLetsInOtherArithmeticAndNothingElse) {
  NumericsClass arithmetic = kMine, model = kMine;
  arithmetic.arithmetic = "bf16-avx512bf16";
  model.model_fingerprint = "def";
  EXPECT_TRUE(CheckPeer(Make("r", kMine, true), Make("w", arithmetic)).ok());
  EXPECT_FALSE(CheckPeer(Make("r", kMine, true), Make("w", model)).ok());
  pb::Hello unknown = Make("w", kMine);
  unknown.set_numerics_id("0123");
  EXPECT_FALSE(CheckPeer(Make("r", kMine, true), unknown).ok());
}

}  // namespace
}  // namespace switchyard::expertwire
