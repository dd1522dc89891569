#include "gateway/api/authorization.h"

#include <openssl/sha.h>

#include "services/base/status.h"

namespace switchyard::gateway {
namespace {

constexpr size_t kFairKeyBytes = 16;

bool IsBearer(std::string_view scheme) {
  constexpr std::string_view kBearer = "bearer ";
  if (scheme.size() < kBearer.size()) return false;
  for (size_t i = 0; i < kBearer.size(); ++i) {
    if ((scheme[i] | 0x20) != kBearer[i]) return false;  // ' ' has the bit set already
  }
  return true;
}

}  // namespace

absl::StatusOr<std::string> Authorize(const security::KeySet* keys,
                                      std::string_view authorization) {
  if (keys == nullptr) return std::string();
  if (authorization.empty()) {
    return Unauthenticated("an API key is needed: send \"Authorization: Bearer KEY\"");
  }
  if (!IsBearer(authorization)) {
    return Unauthenticated("the authorization is not of the form \"Bearer KEY\"");
  }
  const std::string_view key = authorization.substr(7);
  if (!keys->Contains(key)) return Unauthenticated("the API key is not valid");
  unsigned char digest[SHA256_DIGEST_LENGTH];
  SHA256(reinterpret_cast<const unsigned char*>(key.data()), key.size(), digest);
  return std::string(reinterpret_cast<const char*>(digest), kFairKeyBytes);
}

absl::StatusOr<std::string> Authorize(const security::KeySet* keys,
                                      const grpc::CallbackServerContext& context) {
  return Authorize(keys, MetadataOf(context, "authorization"));
}

std::string_view MetadataOf(const grpc::CallbackServerContext& context, const char* key) {
  const auto& all = context.client_metadata();
  const auto it = all.find(key);
  return it == all.end() ? std::string_view()
                         : std::string_view(it->second.data(), it->second.size());
}

}  // namespace switchyard::gateway
