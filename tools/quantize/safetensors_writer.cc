#include "tools/quantize/safetensors_writer.h"

#include <fcntl.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <functional>
#include <nlohmann/json.hpp>
#include <numeric>
#include <utility>

#include "services/base/check.h"
#include "services/base/file.h"
#include "services/base/status.h"

namespace switchyard::quantize {
namespace {

constexpr size_t kAlignment = 8;  // of the data section

}  // namespace

SafetensorsWriter::SafetensorsWriter(std::string directory, std::vector<StoredTensor> tensors,
                                     uint64_t file_bytes)
    : directory_(std::move(directory)), tensors_(std::move(tensors)) {
  uint64_t bytes = 0;
  for (size_t i = 0; i < tensors_.size(); ++i) {
    if (i == 0 || bytes + tensors_[i].bytes() > file_bytes) {
      first_of_file_.push_back(i);
      bytes = 0;
    }
    bytes += tensors_[i].bytes();
  }
}

std::string SafetensorsWriter::NameOf(size_t file) const {
  if (files() == 1) return "model.safetensors";
  return fmt::format("model-{:05}-of-{:05}.safetensors", file + 1, files());
}

absl::Status SafetensorsWriter::Open(size_t file) {
  file_ = file;
  const size_t end = file + 1 < first_of_file_.size() ? first_of_file_[file + 1] : tensors_.size();
  const size_t begin = first_of_file_[file];
  std::vector<size_t> order(end - begin);
  std::iota(order.begin(), order.end(), begin);
  std::ranges::stable_sort(order, std::greater(),
                           [this](size_t i) { return SizeOf(tensors_[i].dtype); });
  nlohmann::ordered_json header = {{"__metadata__", {{"format", "pt"}}}};
  offsets_.assign(order.size(), 0);
  uint64_t offset = 0;
  for (const size_t i : order) {
    const StoredTensor& tensor = tensors_[i];
    header[tensor.name] = {{"dtype", SafetensorsName(tensor.dtype)},
                           {"shape", tensor.shape},
                           {"data_offsets", {offset, offset + tensor.bytes()}}};
    offsets_[i - begin] = offset;
    offset += tensor.bytes();
  }
  std::string text = header.dump();
  text.resize((text.size() + kAlignment - 1) / kAlignment * kAlignment, ' ');
  const uint64_t length = text.size();
  const std::string path = directory_ + "/" + NameOf(file);
  out_ = UniqueFd(::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666));
  if (out_.get() < 0) return Unavailable("{}: cannot be written: {}", path, std::strerror(errno));
  for (uint64_t& at : offsets_) at += sizeof length + text.size();
  SY_RETURN_IF_ERROR(Put(std::as_bytes(std::span(&length, 1))));
  return Put(std::as_bytes(std::span(text)));
}

absl::Status SafetensorsWriter::Close() {
  if (::close(out_.Release()) == 0) return absl::OkStatus();  // some file systems tell late
  return Unavailable("{}/{}: cannot be written: {}", directory_, NameOf(file_),
                     std::strerror(errno));
}

absl::Status SafetensorsWriter::Put(std::span<const std::byte> data) {
  return WriteAll(out_.get(), directory_ + "/" + NameOf(file_),
                  {reinterpret_cast<const char*>(data.data()), data.size()});
}

absl::Status SafetensorsWriter::Write(std::span<const std::byte> data) {
  SY_CHECK(next_ < tensors_.size() && data.size() == tensors_[next_].bytes());
  if (next_ == 0) {
    SY_RETURN_IF_ERROR(Open(0));
  } else if (file_ + 1 < first_of_file_.size() && next_ == first_of_file_[file_ + 1]) {
    SY_RETURN_IF_ERROR(Close());
    SY_RETURN_IF_ERROR(Open(file_ + 1));
  }
  const uint64_t offset = offsets_[next_++ - first_of_file_[file_]];
  if (::lseek(out_.get(), static_cast<off_t>(offset), SEEK_SET) < 0) {
    return Unavailable("{}/{}: cannot be written: {}", directory_, NameOf(file_),
                       std::strerror(errno));
  }
  return Put(data);
}

absl::Status SafetensorsWriter::Finish() {
  SY_CHECK(next_ == tensors_.size() && next_ > 0);
  SY_RETURN_IF_ERROR(Close());
  return files() > 1 ? WriteIndex() : absl::OkStatus();
}

absl::Status SafetensorsWriter::WriteIndex() const {
  nlohmann::ordered_json map = nlohmann::ordered_json::object();
  uint64_t bytes = 0;
  for (size_t i = 0, file = 0; i < tensors_.size(); ++i) {
    while (file + 1 < first_of_file_.size() && first_of_file_[file + 1] <= i) ++file;
    map[tensors_[i].name] = NameOf(file);
    bytes += tensors_[i].bytes();
  }
  const nlohmann::ordered_json index = {{"metadata", {{"total_size", bytes}}}, {"weight_map", map}};
  return WriteFile(directory_ + "/model.safetensors.index.json", index.dump(2) + "\n");
}

}  // namespace switchyard::quantize
