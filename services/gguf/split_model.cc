#include "services/gguf/split_model.h"

#include <unordered_set>

#include "services/base/status.h"

namespace switchyard::gguf {
namespace {

constexpr uint64_t kMaxFiles = 4096;

// A count in the metadata; `fallback` where there is none.
absl::StatusOr<uint64_t> Count(const Header& header, const char* key, uint64_t fallback) {
  const auto it = header.metadata.find(key);
  if (it == header.metadata.end()) return fallback;
  if (!it->is_number_integer() || (!it->is_number_unsigned() && it->get<int64_t>() < 0)) {
    return InvalidArgument("{}: {} is no count", header.path, key);
  }
  return it->get<uint64_t>();
}

std::string Ending(uint64_t number, uint64_t count) {
  return fmt::format("-{:05}-of-{:05}.gguf", number, count);
}

absl::Status CheckPlace(const Header& header, uint64_t number, uint64_t count) {
  SY_ASSIGN_OR_RETURN(const uint64_t found, Count(header, "split.no", 0));
  SY_ASSIGN_OR_RETURN(const uint64_t of, Count(header, "split.count", 1));
  if (found == number && of == count) return absl::OkStatus();
  return InvalidArgument("{}: is file {} of {} by its metadata, expected file {} of {}",
                         header.path, found + 1, of, number + 1, count);
}

}  // namespace

absl::StatusOr<std::vector<Header>> ReadModel(const std::string& path, WantsList wants) {
  std::vector<Header> files;
  SY_ASSIGN_OR_RETURN(files.emplace_back(), ReadHeader(path, wants));
  SY_ASSIGN_OR_RETURN(const uint64_t count, Count(files[0], "split.count", 1));
  if (count <= 1) return files;
  SY_ASSIGN_OR_RETURN(const uint64_t number, Count(files[0], "split.no", 0));
  const std::string ending = Ending(1, count);
  if (count > kMaxFiles || number != 0 || !path.ends_with(ending)) {
    return InvalidArgument(
        "{}: is one of {} files of a model; give the first, whose name ends in {}", path, count,
        ending);
  }
  const std::string stem = path.substr(0, path.size() - ending.size());
  for (uint64_t i = 1; i < count; ++i) {
    SY_ASSIGN_OR_RETURN(Header header, ReadHeader(stem + Ending(i + 1, count), wants));
    SY_RETURN_IF_ERROR(CheckPlace(header, i, count));
    files.push_back(std::move(header));
  }
  std::unordered_set<std::string_view> names;
  for (const Header& file : files) {
    for (const Tensor& tensor : file.tensors) {
      if (names.insert(tensor.name).second) continue;
      return InvalidArgument("{}: tensor \"{}\" is listed by an earlier file too", file.path,
                             tensor.name);
    }
  }
  SY_ASSIGN_OR_RETURN(const uint64_t tensors, Count(files[0], "split.tensors.count", names.size()));
  if (tensors != names.size()) {
    return InvalidArgument("{}: counts {} tensors, but its {} files list {}", path, tensors, count,
                           names.size());
  }
  return files;
}

}  // namespace switchyard::gguf
