#include "expert-worker/device/device_memory.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <utility>

#include "expert-worker/device/pack_expert.h"
#include "services/base/status.h"

namespace switchyard::worker {
namespace {

using device::CudaBlock;

constexpr size_t kLeastPacked = 2;    // one is copied while another is packed
constexpr uint64_t kSpareBlocks = 2;  // for what is computed with and has no room to stay

bool Same(const SyCudaFfnSpec& a, const SyCudaFfnSpec& b) {
  static_assert(std::has_unique_object_representations_v<SyCudaMatrix>);
  return std::memcmp(&a.gate_up, &b.gate_up, sizeof(a.gate_up)) == 0 &&
         std::memcmp(&a.down, &b.down, sizeof(a.down)) == 0 && a.bias == b.bias;
}

}  // namespace

absl::StatusOr<std::unique_ptr<DeviceMemory>> DeviceMemory::Create(
    const ModelSpec& model, const ExpertStore& store, std::shared_ptr<const device::Cuda> cuda,
    uint64_t memory_bytes, uint64_t pinned_bytes) {
  std::unique_ptr<DeviceMemory> memory(
      new DeviceMemory(model, store, std::move(cuda), memory_bytes, pinned_bytes));
  for (int32_t layer = 0; layer < store.layers(); ++layer) {
    for (int32_t expert = 0; expert < store.experts(); ++expert) {
      const ExpertWeights* weights = store.Find(layer, expert);
      if (weights == nullptr) continue;
      SY_RETURN_IF_ERROR(Annotate(memory->CheckForm(*weights),
                                  fmt::format("expert {} of layer {}", expert, layer)));
    }
  }
  return memory;
}

absl::Status DeviceMemory::CheckForm(const ExpertWeights& weights) {
  SY_ASSIGN_OR_RETURN(const SyCudaFfnSpec spec, FfnSpecOf(model_, weights));
  absl::MutexLock lock(&mutex_);
  if (spec_ && Same(*spec_, spec)) return absl::OkStatus();
  if (spec_) {
    return InvalidArgument(
        "its weights are of another form than other experts'; a CUDA device takes those of one");
  }
  SyCudaError error = {};
  block_bytes_ = cuda_->api().expert_bytes(&spec, &error);
  if (block_bytes_ == 0) return InvalidArgument("{}", error.text);
  spec_ = spec;
  return absl::OkStatus();
}

std::optional<SyCudaFfnSpec> DeviceMemory::spec() const {
  absl::MutexLock lock(&mutex_);
  return spec_;
}

DeviceMemoryCounters DeviceMemory::counters() const {
  absl::MutexLock lock(&mutex_);
  DeviceMemoryCounters out = counters_;
  out.pinned_bytes = packed_.size() * block_bytes_;
  return out;
}

uint64_t DeviceMemory::expert_bytes() const {
  absl::MutexLock lock(&mutex_);
  return block_bytes_ > 0 ? block_bytes_ : store_.expert_bytes();
}
uint64_t DeviceMemory::bytes(const ExpertWeights&) const { return expert_bytes(); }
uint64_t DeviceMemory::held_bytes() const {
  return static_cast<uint64_t>(store_.count()) * expert_bytes();
}

absl::Status DeviceMemory::Populate(ExpertId id) {
  // Who asks has made room first, which may be pinned for a moment yet.
  const absl::Status status = Bring(id, /*pin=*/false, /*wait=*/true).status();
  if (status.ok() || absl::IsInvalidArgument(status) || absl::IsNotFound(status)) return status;
  // What a file is to blame for is met by whoever reads it again.
  SY_RETURN_IF_ERROR(store_.Populate(id));
  return absl::UnavailableError(status.message());
}

absl::Status DeviceMemory::Reach(ExpertId id) { return store_.Populate(id); }

absl::StatusOr<const void*> DeviceMemory::Pin(ExpertId id, bool wait) {
  return Bring(id, /*pin=*/true, wait);
}

absl::StatusOr<const void*> DeviceMemory::Bring(ExpertId id, bool pin, bool wait) {
  const size_t index = Index(id);
  {
    absl::MutexLock lock(&mutex_);
    const auto settled = [&] {
      mutex_.AssertHeld();
      const auto at = residents_.find(index);
      return at == residents_.end() || at->second.block;
    };
    mutex_.Await(absl::Condition(&settled));
    Resident& resident = residents_[index];
    // Whoever asks for it wants it to stay; a pin alone lets it go again if it was to leave.
    if (!pin) resident.leaves = false;
    if (resident.block) {
      resident.pins += pin ? 1 : 0;
      return resident.block.data();
    }
    resident.leaves = pin;  // Tiers let it go, or never had room
  }
  absl::StatusOr<CudaBlock> block = Upload(id, wait);
  absl::MutexLock lock(&mutex_);
  if (!block.ok()) {
    residents_.erase(index);
    return block.status();
  }
  Resident& resident = residents_[index];
  resident.block = *std::move(block);
  resident.pins += pin ? 1 : 0;
  const void* const data = resident.block.data();
  if (!pin && resident.leaves) Drop(index);  // evicted while it came
  return data;
}

void DeviceMemory::Unpin(ExpertId id) {
  absl::MutexLock lock(&mutex_);
  Resident& resident = residents_[Index(id)];
  --resident.pins;
  if (resident.leaves && resident.pins == 0) Drop(Index(id));
}

void DeviceMemory::Evict(ExpertId id) {
  absl::MutexLock lock(&mutex_);
  const auto at = residents_.find(Index(id));
  if (at == residents_.end()) return;
  at->second.leaves = true;
  if (at->second.block && at->second.pins == 0) Drop(at->first);
}

void DeviceMemory::Drop(size_t index) {
  const auto at = residents_.find(index);
  free_.push_back(std::move(at->second.block));
  residents_.erase(at);
}

bool DeviceMemory::full() const {
  return memory_bytes_ > 0 && blocks_ >= memory_bytes_ / block_bytes_ + kSpareBlocks;
}

absl::StatusOr<CudaBlock> DeviceMemory::TakeBlock(bool wait) {
  uint64_t bytes = 0;
  {
    absl::MutexLock lock(&mutex_);
    const auto room = [this] {
      mutex_.AssertHeld();
      return !free_.empty() || !full();
    };
    if (wait) mutex_.Await(absl::Condition(&room));
    if (!room()) return absl::ResourceExhaustedError("there is no room for another expert");
    if (!free_.empty()) {
      CudaBlock block = std::move(free_.back());
      free_.pop_back();
      return block;
    }
    ++blocks_;
    bytes = block_bytes_;
  }
  absl::StatusOr<CudaBlock> block = CudaBlock::Allocate(cuda_, SY_CUDA_DEVICE, bytes);
  if (!block.ok()) {
    absl::MutexLock lock(&mutex_);
    --blocks_;
  }
  return block;
}

absl::StatusOr<CudaBlock> DeviceMemory::Upload(ExpertId id, bool wait) {
  const ExpertWeights* weights = store_.Find(id.layer, id.expert);
  if (weights == nullptr)
    return NotFound("expert {} of layer {} is held no more", id.expert, id.layer);
  SY_RETURN_IF_ERROR(CheckForm(*weights));
  // The block first: who waits for one has nothing that others wait for.
  SY_ASSIGN_OR_RETURN(CudaBlock block, TakeBlock(wait));
  const absl::Status status = CopyTo(block, id, *weights);
  if (status.ok()) return block;
  absl::MutexLock lock(&mutex_);
  free_.push_back(std::move(block));
  return status;
}

absl::Status DeviceMemory::CopyTo(const CudaBlock& block, ExpertId id,
                                  const ExpertWeights& weights) {
  SY_ASSIGN_OR_RETURN(Packed* const packed, TakePacked(Index(id)));
  const bool fresh = packed->holds != Index(id);
  absl::Status status;
  if (fresh) {
    status = store_.Populate(id);  // a page that cannot be read is an error, not the end
    if (status.ok()) PackExpert(*spec(), weights, packed->block.data());
  }
  const bool is_packed = status.ok();
  uint64_t us = 0;
  if (is_packed) {
    const auto start = std::chrono::steady_clock::now();
    SyCudaError error = {};
    const int code = cuda_->api().upload(cuda_->context(), block.data(), packed->block.data(),
                                         expert_bytes(), &error);
    us = static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::microseconds>(
                                   std::chrono::steady_clock::now() - start)
                                   .count());
    status = device::ToStatus(code, error, cuda_->name());
  }
  absl::MutexLock lock(&mutex_);
  if (is_packed) packed->holds = Index(id);
  packed->busy = false;
  counters_.packed += fresh && is_packed ? 1 : 0;
  counters_.uploaded += status.ok() ? 1 : 0;
  counters_.uploaded_bytes += status.ok() ? block_bytes_ : 0;
  counters_.upload_us += us;
  return status;
}

DeviceMemory::Packed* DeviceMemory::Oldest(size_t index) {
  Packed* oldest = nullptr;
  for (const auto& packed : packed_) {
    if (packed->busy) continue;
    if (packed->holds == index) return packed.get();
    if (oldest == nullptr || packed->used < oldest->used) oldest = packed.get();
  }
  return oldest;
}

absl::StatusOr<DeviceMemory::Packed*> DeviceMemory::TakePacked(size_t index) {
  bool grow = false;
  uint64_t bytes = 0;
  const auto take = [&](Packed* packed) {
    mutex_.AssertHeld();
    packed->busy = true;
    packed->used = ++uses_;
    if (packed->holds != index) packed->holds.reset();
    return packed;
  };
  {
    absl::MutexLock lock(&mutex_);
    Packed* const own = Oldest(index);
    if (own != nullptr && own->holds == index) return take(own);
    bytes = block_bytes_;
    grow = packed_.size() < kLeastPacked || (packed_.size() + 1) * bytes <= pinned_bytes_;
  }
  if (grow) {
    absl::StatusOr<CudaBlock> block = CudaBlock::Allocate(cuda_, SY_CUDA_PINNED, bytes);
    absl::MutexLock lock(&mutex_);
    if (block.ok()) {
      packed_.push_back(std::make_unique<Packed>(Packed{.block = *std::move(block)}));
      return take(packed_.back().get());
    }
    // No more memory can be pinned: what is there has to do.
    if (packed_.empty()) return block.status();
  }
  absl::MutexLock lock(&mutex_);
  Packed* oldest = nullptr;
  const auto one = [&] {
    mutex_.AssertHeld();
    oldest = Oldest(index);
    return oldest != nullptr;
  };
  mutex_.Await(absl::Condition(&one));
  return take(oldest);
}

}  // namespace switchyard::worker
