#include "gateway/streams/request_id.h"

#include <fmt/format.h>

#include <algorithm>
#include <random>

namespace switchyard::gateway {
namespace {

constexpr size_t kIdBytesMax = 128;

bool IsIdCharacter(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' ||
         c == '_' || c == '.' || c == ':';
}

}  // namespace

bool IsRequestId(std::string_view id) {
  return !id.empty() && id.size() <= kIdBytesMax &&
         std::all_of(id.begin(), id.end(), IsIdCharacter);
}

uint64_t DrawSeed() {
  std::random_device random;
  return (static_cast<uint64_t>(random()) << 32) | random();
}

std::string MakeRequestId() { return fmt::format("{:016x}{:016x}", DrawSeed(), DrawSeed()); }

}  // namespace switchyard::gateway
