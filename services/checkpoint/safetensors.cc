#include "services/base/file.h"
#include "services/base/status.h"
#include "services/checkpoint/header.h"
#include "services/checkpoint/mapped_source.h"
#include "services/checkpoint/shard_index.h"
#include "services/checkpoint/tensor_source.h"

namespace switchyard::checkpoint {
namespace {

constexpr std::string_view kSingleFile = "model.safetensors";
constexpr std::string_view kIndexFile = "model.safetensors.index.json";
constexpr uint64_t kMaxIndexBytes = kMaxHeaderBytes;
constexpr std::string_view kSafetensorsDTypes = "F32, BF16, F16";

// Adds the file's tensors that `keep` says belong to the checkpoint.
template <typename Keep>
absl::Status AddTensors(const std::string& path, MappedSource& source, Keep keep) {
  SY_ASSIGN_OR_RETURN(const int file, source.AddFile(path));
  SY_ASSIGN_OR_RETURN(Header header, ReadHeader(source.file(file)));
  for (TensorInfo& tensor : header.tensors) {
    if (!keep(tensor.name)) continue;
    tensor.file = file;
    source.AddTensor(std::move(tensor));
  }
  return absl::OkStatus();
}

absl::Status OpenSharded(const std::string& directory, const std::string& index_path,
                         MappedSource& source) {
  SY_ASSIGN_OR_RETURN(const std::string text, ReadFile(index_path, kMaxIndexBytes));
  SY_ASSIGN_OR_RETURN(const ShardIndex index, ParseShardIndex(text, index_path));
  for (size_t shard = 0; shard < index.shards.size(); ++shard) {
    // What the index does not assign to this shard is not part of the checkpoint.
    const auto keep = [&](const std::string& name) {
      const auto listed = index.shard_of.find(name);
      return listed != index.shard_of.end() && listed->second == static_cast<int>(shard);
    };
    const absl::Status added = AddTensors(directory + "/" + index.shards[shard], source, keep);
    if (!added.ok()) return Annotate(added, index_path);
  }
  source.Finish();
  for (const auto& [name, shard] : index.shard_of) {
    if (source.Find(name) == nullptr) {
      return InvalidArgument("{}: tensor \"{}\" is not in {}, where the index has it", index_path,
                             name, index.shards[static_cast<size_t>(shard)]);
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<TensorSource>> OpenSafetensors(const std::string& directory) {
  const std::string single = fmt::format("{}/{}", directory, kSingleFile);
  const std::string index = fmt::format("{}/{}", directory, kIndexFile);
  auto source = std::make_unique<MappedSource>(std::string(kSafetensorsDTypes));
  if (FileExists(single)) {
    SY_RETURN_IF_ERROR(AddTensors(single, *source, [](const std::string&) { return true; }));
    source->Finish();
  } else if (FileExists(index)) {
    SY_RETURN_IF_ERROR(OpenSharded(directory, index, *source));
  } else {
    return NotFound("{}: holds neither {} nor {}", directory, kSingleFile, kIndexFile);
  }
  SY_ASSIGN_OR_RETURN(Checksums checksums, Checksums::Read(Checksums::PathFor(directory)));
  source->SetChecksums(std::move(checksums));
  return std::unique_ptr<TensorSource>(std::move(source));
}

}  // namespace switchyard::checkpoint
