// Names for what a KV block holds: a chain of SHA-256 digests, each over the one before and the
// kBlockTokens tokens of its block, from a first one over the cache salt. Equal digests are equal
// tokens up to the block's end under the same salt; nobody can make two prefixes collide, and who
// does not know a salt cannot name its blocks. Model and arithmetic are the process's own.
//
// Pure; any thread.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string_view>

namespace switchyard::router {

using BlockDigest = std::array<uint8_t, 32>;

// What the first block's digest is chained to. An empty salt is one that all share.
BlockDigest SaltDigest(std::string_view salt);

// A block of each group of layers (services/model/kv_layout.h) holds the same tokens: how that of
// `group` is called.
inline BlockDigest InGroup(BlockDigest digest, int group) {
  digest[0] ^= static_cast<uint8_t>(group);
  digest[1] ^= static_cast<uint8_t>(group >> 8);
  return digest;
}

// Of the block that holds `tokens`, kBlockTokens of them (checked), after the block `before`.
BlockDigest NextDigest(const BlockDigest& before, std::span<const int32_t> tokens);

}  // namespace switchyard::router
