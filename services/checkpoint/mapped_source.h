// The part of a TensorSource that all formats share: files, tensors by name, and the mapping of
// their ranges. A format's opener adds files and tensors and calls Finish.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "services/checkpoint/checksums.h"
#include "services/checkpoint/mapped_file.h"
#include "services/checkpoint/tensor_source.h"

namespace switchyard::checkpoint {

// Thread-safe after Finish, as a TensorSource is.
class MappedSource : public TensorSource {
 public:
  // `dtypes` is what an error lists as supported: "F32, BF16, F16".
  explicit MappedSource(std::string dtypes) : dtypes_(std::move(dtypes)) {}

  // The file's index; the file itself stays as long as the source. NOT_FOUND.
  absl::StatusOr<int> AddFile(const std::string& path);
  const MappedFile& file(int index) const { return *files_[static_cast<size_t>(index)]; }
  // Names must be distinct, bytes inside the file and as many as dtype and shape say, unless the
  // dtype is unknown.
  void AddTensor(TensorInfo tensor) { tensors_.push_back(std::move(tensor)); }
  // What its bytes must be.
  void SetChecksums(Checksums checksums) { checksums_ = std::move(checksums); }
  void Finish();

  const std::vector<std::string>& files() const override { return paths_; }
  const std::vector<TensorInfo>& tensors() const override { return tensors_; }
  const TensorInfo* Find(std::string_view name) const override;
  absl::Status Map(const std::vector<TensorRange>& ranges) override;
  absl::StatusOr<MappedTensor> Get(const TensorRange& range) const override;
  absl::Status Populate(const TensorRange& range) const override;
  absl::Status Verify(const TensorRange& range) const override;
  void Evict(const TensorRange& range) const override;
  absl::Status Read(int file, uint64_t offset, void* to, size_t bytes) const override;

 private:
  // A range of a tensor as bytes of its file.
  struct Located {
    const TensorInfo* tensor = nullptr;
    ByteRange range;
    int64_t count = 0;
  };
  absl::StatusOr<Located> Locate(const TensorRange& range) const;
  // Where it was mapped; null if it was not.
  const std::byte* Address(const Located& located) const;
  absl::Status CheckAlignment(const TensorInfo& tensor) const;
  const std::string& PathOf(const TensorInfo& tensor) const {
    return paths_[static_cast<size_t>(tensor.file)];
  }

  const std::string dtypes_;
  Checksums checksums_;
  std::vector<std::string> paths_;
  std::vector<TensorInfo> tensors_;
  // Keys point into tensors_, which does not change after Finish.
  std::unordered_map<std::string_view, size_t> by_name_;
  mutable absl::Mutex mutex_;                       // guards the mappings of files_
  std::vector<std::unique_ptr<MappedFile>> files_;  // constant after opening, as are their headers
};

// INVALID_ARGUMENT names two of these tensors of one file that share bytes.
absl::Status CheckOverlaps(std::string_view path, const std::vector<TensorInfo>& tensors);

}  // namespace switchyard::checkpoint
