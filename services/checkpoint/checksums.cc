#include "services/checkpoint/checksums.h"

#define XXH_STATIC_LINKING_ONLY
#include <fmt/format.h>
#include <xxhash.h>

#include <algorithm>
#include <charconv>
#include <map>
#include <nlohmann/json.hpp>
#include <utility>

#include "services/base/file.h"
#include "services/base/status.h"
#include "services/gguf/header.h"

namespace switchyard::checkpoint {
namespace {

constexpr std::string_view kName = "checksums.json";
constexpr std::string_view kAlgorithm = "xxh3-64";
constexpr uint64_t kMaxFileBytes = uint64_t{1} << 30;
constexpr uint64_t kChunkBytes = 4 << 20;

// How many checksums a tensor has.
int64_t PiecesOf(const TensorInfo& tensor) {
  const bool biases = tensor.shape.size() == 2 && tensor.name.ends_with("bias");
  return tensor.shape.size() > 2 || biases ? tensor.shape[0] : 1;
}

absl::StatusOr<uint64_t> HashOf(const TensorSource& source, int file, uint64_t offset,
                                uint64_t bytes, std::string* buffer) {
  XXH3_state_t state;
  XXH3_64bits_reset(&state);
  for (uint64_t at = 0; at < bytes; at += kChunkBytes) {
    buffer->resize(std::min(kChunkBytes, bytes - at));
    SY_RETURN_IF_ERROR(source.Read(file, offset + at, buffer->data(), buffer->size()));
    XXH3_64bits_update(&state, buffer->data(), buffer->size());
  }
  return XXH3_64bits_digest(&state);
}

std::vector<uint64_t> FromJson(const nlohmann::json& texts) {
  std::vector<uint64_t> out;
  for (const nlohmann::json& text : texts) {
    if (!text.is_string()) return {};
    const std::string& hex = text.get_ref<const std::string&>();
    uint64_t value = 0;
    const auto [end, error] = std::from_chars(hex.data(), hex.data() + hex.size(), value, 16);
    if (error != std::errc() || end != hex.data() + hex.size()) return {};
    out.push_back(value);
  }
  return out;
}

}  // namespace

std::string Checksums::PathFor(const std::string& checkpoint) {
  return fmt::format("{}{}{}", checkpoint, gguf::IsGguf(checkpoint) ? "." : "/", kName);
}

absl::StatusOr<Checksums> Checksums::Of(const TensorSource& source, const ProgressFn& progress) {
  Checksums out;
  uint64_t done = 0, total = 0;
  for (const TensorInfo& tensor : source.tensors()) total += tensor.bytes;
  std::string buffer;
  for (const TensorInfo& tensor : source.tensors()) {
    const int64_t pieces = PiecesOf(tensor);
    const uint64_t bytes = pieces == 0 ? 0 : tensor.bytes / static_cast<uint64_t>(pieces);
    std::vector<uint64_t>& sums = out.of_[tensor.name];
    for (int64_t i = 0; i < pieces; ++i) {
      const uint64_t offset = tensor.offset + static_cast<uint64_t>(i) * bytes;
      SY_ASSIGN_OR_RETURN(const uint64_t sum, HashOf(source, tensor.file, offset, bytes, &buffer));
      sums.push_back(sum);
    }
    done += tensor.bytes;
    if (progress && !progress(done, total)) return absl::CancelledError();
  }
  return out;
}

absl::StatusOr<Checksums> Checksums::Read(const std::string& path) {
  Checksums out;
  out.path_ = path;
  if (!FileExists(path)) return out;
  SY_ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kMaxFileBytes));
  const auto json = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object() || !json.contains("tensors") || !json["tensors"].is_object()) {
    return InvalidArgument(
        "{}: is no list of checksums; remove it, and `switchyard checksums` writes one", path);
  }
  if (json.value("algorithm", nlohmann::json()) != kAlgorithm) {
    return InvalidArgument("{}: \"algorithm\" must be \"{}\"", path, kAlgorithm);
  }
  for (const auto& [name, texts] : json["tensors"].items()) {
    std::vector<uint64_t> sums = texts.is_array() ? FromJson(texts) : std::vector<uint64_t>{};
    if (sums.empty() && texts != nlohmann::json::array()) {
      return InvalidArgument("{}: tensor \"{}\": must be a list of hexadecimal numbers", path,
                             name);
    }
    out.of_[name] = std::move(sums);
  }
  return out;
}

std::string Checksums::Json() const {
  nlohmann::ordered_json tensors = nlohmann::ordered_json::object();
  for (const auto& [name, sums] : std::map(of_.begin(), of_.end())) {
    nlohmann::ordered_json& texts = tensors[name] = nlohmann::ordered_json::array();
    for (const uint64_t sum : sums) texts.push_back(fmt::format("{:016x}", sum));
  }
  return nlohmann::ordered_json{{"algorithm", kAlgorithm}, {"tensors", tensors}}.dump(1) + "\n";
}

bool Checksums::Matches(const TensorInfo& tensor, int64_t first, int64_t count,
                        const std::byte* data) const {
  const auto known = of_.find(tensor.name);
  if (known == of_.end() || tensor.bytes == 0) return true;
  const std::vector<uint64_t>& sums = known->second;
  const int64_t pieces = PiecesOf(tensor);
  if (sums.size() != static_cast<size_t>(pieces)) return false;  // of another checkpoint
  const int64_t rows = tensor.shape.empty() ? 1 : tensor.shape[0];
  if (pieces == 1 && count != rows) return true;
  const size_t bytes = tensor.bytes / static_cast<uint64_t>(pieces);
  const int64_t begin = pieces == 1 ? 0 : first, end = pieces == 1 ? 1 : first + count;
  for (int64_t i = begin; i < end; ++i, data += bytes) {
    if (XXH3_64bits(data, bytes) != sums[static_cast<size_t>(i)]) return false;
  }
  return true;
}

std::vector<std::string> Checksums::Differences(const Checksums& now) const {
  std::vector<std::string> out;
  for (const auto& [name, sums] : of_) {
    const auto at = now.of_.find(name);
    if (at == now.of_.end() || at->second != sums) out.push_back(name);
  }
  std::ranges::sort(out);
  return out;
}

}  // namespace switchyard::checkpoint
