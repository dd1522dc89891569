#include "services/checkpoint/mapped_source.h"

#include <algorithm>

#include "services/base/status.h"

namespace switchyard::checkpoint {
namespace {

// Linux allows 65530 mappings a process; the rest is for everybody else.
constexpr size_t kMaxMappings = 16384;

}  // namespace

absl::StatusOr<int> MappedSource::AddFile(const std::string& path) {
  SY_ASSIGN_OR_RETURN(std::unique_ptr<MappedFile> file, MappedFile::Open(path));
  paths_.push_back(path);
  files_.push_back(std::move(file));
  return static_cast<int>(files_.size()) - 1;
}

void MappedSource::Finish() {
  std::ranges::sort(tensors_, {}, &TensorInfo::name);
  for (size_t i = 0; i < tensors_.size(); ++i) by_name_.emplace(tensors_[i].name, i);
}

const TensorInfo* MappedSource::Find(std::string_view name) const {
  const auto it = by_name_.find(name);
  return it == by_name_.end() ? nullptr : &tensors_[it->second];
}

absl::Status MappedSource::Map(const std::vector<TensorRange>& ranges) {
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

absl::StatusOr<MappedTensor> MappedSource::Get(const TensorRange& range) const {
  SY_ASSIGN_OR_RETURN(const Located located, Locate(range));
  MappedTensor out{nullptr, located.tensor->dtype, located.tensor->shape};
  if (!out.shape.empty()) out.shape[0] = located.count;
  if (located.range.bytes == 0) return out;
  out.data = Address(located);
  if (out.data == nullptr) {
    return FailedPrecondition("{}: tensor \"{}\" is not mapped", PathOf(*located.tensor),
                              range.name);
  }
  return out;
}

const std::byte* MappedSource::Address(const Located& located) const {
  absl::ReaderMutexLock lock(&mutex_);
  return files_[static_cast<size_t>(located.tensor->file)]->Find(located.range);
}

absl::Status MappedSource::Populate(const TensorRange& range) const {
  SY_ASSIGN_OR_RETURN(const Located located, Locate(range));
  const std::byte* const data = Address(located);
  if (data == nullptr) return absl::OkStatus();
  const auto status = file(located.tensor->file).Populate(data, located.range.bytes);
  return status.ok() ? status : Annotate(status, fmt::format("tensor \"{}\"", range.name));
}

absl::Status MappedSource::Verify(const TensorRange& range) const {
  if (checksums_.empty()) return absl::OkStatus();
  SY_ASSIGN_OR_RETURN(const Located located, Locate(range));
  const std::byte* const data = Address(located);
  if (data == nullptr) return absl::OkStatus();
  const TensorInfo& tensor = *located.tensor;
  if (checksums_.Matches(tensor, range.first, located.count, data)) return absl::OkStatus();
  return DataLoss(
      "{}: tensor \"{}\": its bytes have another checksum than in {}; fetch the file again, or, if "
      "it was changed on purpose, write checksums with `switchyard checksums`",
      PathOf(tensor), range.name, checksums_.path());
}

void MappedSource::Evict(const TensorRange& range) const {
  const absl::StatusOr<Located> located = Locate(range);
  const std::byte* const data = located.ok() ? Address(*located) : nullptr;
  if (data != nullptr) MappedFile::Evict(data, located->range.bytes);
}

absl::Status MappedSource::Read(int file, uint64_t offset, void* to, size_t bytes) const {
  return files_[static_cast<size_t>(file)]->Read(offset, to, bytes);
}

absl::StatusOr<MappedSource::Located> MappedSource::Locate(const TensorRange& range) const {
  const TensorInfo* tensor = Find(range.name);
  if (tensor == nullptr) {
    return NotFound("{}: has no tensor \"{}\"",
                    paths_.size() == 1
                        ? paths_[0]
                        : fmt::format("{} and its {} siblings", paths_[0], paths_.size() - 1),
                    range.name);
  }
  if (!tensor->unknown_dtype.empty()) {
    return Unimplemented("{}: tensor \"{}\" has dtype {}; supported: {}", PathOf(*tensor),
                         range.name, tensor->unknown_dtype, dtypes_);
  }
  const int64_t rows = tensor->shape.empty() ? 1 : tensor->shape[0];
  const int64_t count = range.count == -1 ? rows - range.first : range.count;
  if (range.first < 0 || count < 0 || range.first > rows || count > rows - range.first) {
    return InvalidArgument("{}: tensor \"{}\": {} rows from row {} of {}", PathOf(*tensor),
                           range.name, count, range.first, rows);
  }
  const uint64_t row_bytes = rows == 0 ? 0 : tensor->bytes / static_cast<uint64_t>(rows);
  return Located{tensor,
                 {tensor->offset + static_cast<uint64_t>(range.first) * row_bytes,
                  static_cast<uint64_t>(count) * row_bytes},
                 count};
}

// Weights are used where they lie, so they have to lie as the processor wants them.
absl::Status MappedSource::CheckAlignment(const TensorInfo& tensor) const {
  // Blocks are read byte by byte.
  if (IsBlocked(tensor.dtype) || tensor.offset % SizeOf(tensor.dtype) == 0) return absl::OkStatus();
  return Unimplemented(
      "{}: tensor \"{}\" of {} begins at the unaligned byte {}; write the file "
      "again, aligned (as safetensors does from 0.3 on)",
      PathOf(tensor), tensor.name, Name(tensor.dtype), tensor.offset);
}

absl::Status CheckOverlaps(std::string_view path, const std::vector<TensorInfo>& tensors) {
  std::vector<const TensorInfo*> order;
  for (const TensorInfo& t : tensors) {
    if (t.bytes > 0) order.push_back(&t);
  }
  std::ranges::sort(order, {}, &TensorInfo::offset);
  for (size_t i = 1; i < order.size(); ++i) {
    const TensorInfo& before = *order[i - 1];
    if (order[i]->offset < before.offset + before.bytes) {
      return InvalidArgument("{}: tensor \"{}\" overlaps tensor \"{}\" in the file", path,
                             order[i]->name, before.name);
    }
  }
  return absl::OkStatus();
}

}  // namespace switchyard::checkpoint
