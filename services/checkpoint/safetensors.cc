#include <algorithm>
#include <map>
#include <unordered_map>

#include "absl/synchronization/mutex.h"
#include "services/base/file.h"
#include "services/base/status.h"
#include "services/checkpoint/header.h"
#include "services/checkpoint/mapped_file.h"
#include "services/checkpoint/shard_index.h"
#include "services/checkpoint/tensor_source.h"

namespace switchyard::checkpoint {
namespace {

constexpr std::string_view kSingleFile = "model.safetensors";
constexpr std::string_view kIndexFile = "model.safetensors.index.json";
constexpr uint64_t kMaxIndexBytes = kMaxHeaderBytes;
// Linux allows 65530 mappings a process; the rest is for everybody else.
constexpr size_t kMaxMappings = 16384;

// A range of a tensor as bytes of its file.
struct Located {
  const TensorInfo* tensor = nullptr;
  ByteRange range;
  int64_t count = 0;
};

class SafetensorsSource : public TensorSource {
 public:
  absl::Status OpenSingle(const std::string& path) {
    SY_ASSIGN_OR_RETURN(Header header, AddFile(path));
    tensors_ = std::move(header.tensors);
    Finish();
    return absl::OkStatus();
  }

  absl::Status OpenSharded(const std::string& directory, const std::string& index_path) {
    SY_ASSIGN_OR_RETURN(const std::string text, ReadFile(index_path, kMaxIndexBytes));
    SY_ASSIGN_OR_RETURN(const ShardIndex index, ParseShardIndex(text, index_path));
    for (size_t shard = 0; shard < index.shards.size(); ++shard) {
      auto header = AddFile(directory + "/" + index.shards[shard]);
      if (!header.ok()) return Annotate(header.status(), index_path);
      for (TensorInfo& tensor : header->tensors) {
        const auto listed = index.shard_of.find(tensor.name);
        // What the index does not assign to this shard is not part of the checkpoint.
        if (listed == index.shard_of.end() || listed->second != static_cast<int>(shard)) continue;
        tensor.file = static_cast<int>(shard);
        tensors_.push_back(std::move(tensor));
      }
    }
    Finish();
    for (const auto& [name, shard] : index.shard_of) {
      if (Find(name) == nullptr) {
        return InvalidArgument("{}: tensor \"{}\" is not in {}, where the index has it", index_path,
                               name, index.shards[static_cast<size_t>(shard)]);
      }
    }
    return absl::OkStatus();
  }

  const std::vector<std::string>& files() const override { return paths_; }
  const std::vector<TensorInfo>& tensors() const override { return tensors_; }

  const TensorInfo* Find(std::string_view name) const override {
    const auto it = by_name_.find(name);
    return it == by_name_.end() ? nullptr : &tensors_[it->second];
  }

  absl::Status Map(const std::vector<TensorRange>& ranges) override {
    std::vector<std::vector<ByteRange>> of_file(files_.size());
    for (const TensorRange& range : ranges) {
      SY_ASSIGN_OR_RETURN(const Located located, Locate(range));
      SY_RETURN_IF_ERROR(CheckAlignment(*located.tensor));
      of_file[static_cast<size_t>(located.tensor->file)].push_back(located.range);
    }
    const auto used = std::ranges::count_if(of_file, [](const auto& r) { return !r.empty(); });
    absl::MutexLock lock(&mutex_);
    for (size_t i = 0; i < files_.size(); ++i) {
      if (of_file[i].empty()) continue;
      const size_t share = std::max<size_t>(1, kMaxMappings / static_cast<size_t>(used));
      SY_RETURN_IF_ERROR(files_[i]->Map(std::move(of_file[i]), share));
    }
    return absl::OkStatus();
  }

  absl::StatusOr<MappedTensor> Get(const TensorRange& range) const override {
    SY_ASSIGN_OR_RETURN(const Located located, Locate(range));
    MappedTensor out{nullptr, located.tensor->dtype, located.tensor->shape};
    if (!out.shape.empty()) out.shape[0] = located.count;
    if (located.range.bytes == 0) return out;
    absl::ReaderMutexLock lock(&mutex_);
    out.data = files_[static_cast<size_t>(located.tensor->file)]->Find(located.range);
    if (out.data == nullptr) {
      return FailedPrecondition("{}: tensor \"{}\" is not mapped", FileOf(*located.tensor),
                                range.name);
    }
    return out;
  }

  absl::Status Read(int file, uint64_t offset, void* to, size_t bytes) const override {
    return files_[static_cast<size_t>(file)]->Read(offset, to, bytes);
  }

 private:
  absl::StatusOr<Header> AddFile(const std::string& path) {
    SY_ASSIGN_OR_RETURN(std::unique_ptr<MappedFile> file, MappedFile::Open(path));
    SY_ASSIGN_OR_RETURN(Header header, ReadHeader(*file));
    paths_.push_back(path);
    files_.push_back(std::move(file));
    return header;
  }

  void Finish() {
    std::ranges::sort(tensors_, {}, &TensorInfo::name);
    for (size_t i = 0; i < tensors_.size(); ++i) by_name_.emplace(tensors_[i].name, i);
  }

  const std::string& FileOf(const TensorInfo& tensor) const {
    return paths_[static_cast<size_t>(tensor.file)];
  }

  absl::StatusOr<Located> Locate(const TensorRange& range) const {
    const TensorInfo* tensor = Find(range.name);
    if (tensor == nullptr) {
      return NotFound("{}: has no tensor \"{}\"",
                      paths_.size() == 1
                          ? paths_[0]
                          : fmt::format("{} and its {} siblings", paths_[0], paths_.size() - 1),
                      range.name);
    }
    if (!tensor->unknown_dtype.empty()) {
      return Unimplemented("{}: tensor \"{}\" has dtype {}; supported: F32, BF16, F16",
                           FileOf(*tensor), range.name, tensor->unknown_dtype);
    }
    const int64_t rows = tensor->shape.empty() ? 1 : tensor->shape[0];
    const int64_t count = range.count == -1 ? rows - range.first : range.count;
    if (range.first < 0 || count < 0 || range.first > rows || count > rows - range.first) {
      return InvalidArgument("{}: tensor \"{}\": {} rows from row {} of {}", FileOf(*tensor),
                             range.name, count, range.first, rows);
    }
    const uint64_t row_bytes = rows == 0 ? 0 : tensor->bytes / static_cast<uint64_t>(rows);
    return Located{tensor,
                   {tensor->offset + static_cast<uint64_t>(range.first) * row_bytes,
                    static_cast<uint64_t>(count) * row_bytes},
                   count};
  }

  // Weights are used where they lie, so they have to lie as the processor wants them.
  absl::Status CheckAlignment(const TensorInfo& tensor) const {
    if (tensor.offset % SizeOf(tensor.dtype) == 0) return absl::OkStatus();
    return Unimplemented(
        "{}: tensor \"{}\" of {} begins at the unaligned byte {}; write the file "
        "again with safetensors 0.3 or later",
        FileOf(tensor), tensor.name, Name(tensor.dtype), tensor.offset);
  }

  std::vector<std::string> paths_;
  std::vector<TensorInfo> tensors_;
  // Keys point into tensors_, which does not change after opening.
  std::unordered_map<std::string_view, size_t> by_name_;
  mutable absl::Mutex mutex_;                       // guards the mappings of files_
  std::vector<std::unique_ptr<MappedFile>> files_;  // constant after opening, as are their headers
};

}  // namespace

absl::StatusOr<std::unique_ptr<TensorSource>> OpenSafetensors(const std::string& directory) {
  const std::string single = fmt::format("{}/{}", directory, kSingleFile);
  const std::string index = fmt::format("{}/{}", directory, kIndexFile);
  auto source = std::make_unique<SafetensorsSource>();
  if (FileExists(single)) {
    SY_RETURN_IF_ERROR(source->OpenSingle(single));
  } else if (FileExists(index)) {
    SY_RETURN_IF_ERROR(source->OpenSharded(directory, index));
  } else {
    return NotFound("{}: holds neither {} nor {}", directory, kSingleFile, kIndexFile);
  }
  return std::unique_ptr<TensorSource>(std::move(source));
}

}  // namespace switchyard::checkpoint
