#include "gateway/streams/request_id.h"

#include <fmt/format.h>

#include <algorithm>

#include "services/base/random_bits.h"

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

std::string MakeRequestId() { return fmt::format("{:016x}{:016x}", RandomBits(), RandomBits()); }

}  // namespace switchyard::gateway
