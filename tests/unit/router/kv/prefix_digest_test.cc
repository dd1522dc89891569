#include "router/kv/prefix_digest.h"

#include <gtest/gtest.h>

#include <set>
#include <vector>

#include "router/kv/kv_storage.h"

namespace switchyard::router {
namespace {

TEST(PrefixDigestTest, EveryTokenEveryPredecessorAndTheSaltCount) {
  std::vector<int32_t> tokens(kBlockTokens, 7);
  const BlockDigest root = SaltDigest("");
  std::set<BlockDigest> seen = {root, SaltDigest("a"), SaltDigest("b")};
  EXPECT_EQ(seen.size(), 3u);
  EXPECT_TRUE(seen.insert(NextDigest(root, tokens)).second);
  EXPECT_TRUE(seen.insert(NextDigest(SaltDigest("a"), tokens)).second);
  EXPECT_TRUE(seen.insert(NextDigest(NextDigest(root, tokens), tokens)).second);
  for (int32_t& token : tokens) {
    token += 1 << 24;
    EXPECT_TRUE(seen.insert(NextDigest(root, tokens)).second);
    token -= 1 << 24;
  }
  EXPECT_FALSE(seen.insert(NextDigest(root, tokens)).second);
  for (int group = 1; group < 1000; ++group) {
    EXPECT_TRUE(seen.insert(InGroup(NextDigest(root, tokens), group)).second);
  }
  EXPECT_EQ(InGroup(root, 0), root);
}

}  // namespace
}  // namespace switchyard::router
