#include "router/kv/prefix_digest.h"

#include <openssl/sha.h>

#include <cstring>

#include "router/kv/kv_storage.h"
#include "services/base/check.h"

namespace switchyard::router {

BlockDigest SaltDigest(std::string_view salt) {
  BlockDigest digest;
  static_assert(sizeof digest == SHA256_DIGEST_LENGTH);
  SHA256(reinterpret_cast<const unsigned char*>(salt.data()), salt.size(), digest.data());
  return digest;
}

BlockDigest NextDigest(const BlockDigest& before, std::span<const int32_t> tokens) {
  SY_CHECK(tokens.size() == kBlockTokens);
  std::array<unsigned char, sizeof(BlockDigest) + kBlockTokens * sizeof(int32_t)> text;
  std::memcpy(text.data(), before.data(), before.size());
  std::memcpy(text.data() + before.size(), tokens.data(), tokens.size_bytes());
  BlockDigest digest;
  SHA256(text.data(), text.size(), digest.data());
  return digest;
}

}  // namespace switchyard::router
