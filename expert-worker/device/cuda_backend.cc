#include "expert-worker/device/cuda_backend.h"

#include <cstring>

#include "expert-worker/device/pinned_rows.h"
#include "services/base/status.h"

namespace switchyard::worker {
namespace {

using expertwire::Answer;
using expertwire::Call;
using expertwire::Segment;
namespace pb = expertwire::pb;

constexpr size_t kIdleBytes = 64u << 20;  // of answers, in pinned memory

}  // namespace

CudaBackend::CudaBackend(const ModelSpec& spec, DeviceMemory& memory)
    : hidden_(spec.hidden),
      memory_(memory),
      api_(memory.cuda()->api()),
      buffers_(kIdleBytes, std::make_shared<PinnedRows>(memory.cuda())) {}

CudaBackend::~CudaBackend() {
  Unpin();
  if (ffn_ != nullptr) api_.ffn_destroy(ffn_);
}

size_t CudaBackend::bytes_a_pair() const {
  // As the plugin has it, but for what lies between gate and down.
  return ffn_ != nullptr ? api_.ffn_pair_bytes(ffn_) : static_cast<size_t>(hidden_) * 10;
}

void CudaBackend::Start(const Batch& batch, std::span<Answer> answers) {
  batch_ = batch;
  answers_ = answers;
  on_device_ = false;
  status_ = ComputeFrame();
  if (!status_.ok()) WaitForDevice(&status_);
}

bool CudaBackend::Done() {
  if (!on_device_) return true;
  int32_t done = 0;
  SyCudaError error = {};
  return api_.ffn_poll(ffn_, &done, &error) != SY_CUDA_OK || done != 0;
}

absl::Status CudaBackend::Finish() {
  WaitForDevice(&status_);
  if (!status_.ok()) return Annotate(status_, memory_.cuda()->name());
  for (size_t p = 0; p < answers_.size(); ++p) {
    Answer& answer = answers_[p];
    if (answer.payload.bytes() == 0) continue;
    const auto hidden = static_cast<uint32_t>(hidden_);
    const size_t sums = size_t{answer.sums} * hidden * 2;
    const size_t rows = batch_.work[p].layout.rows_offset(hidden, DType::kBF16);
    std::memset(answer.payload.mutable_data() + sums, 0, rows - sums);
  }
  return absl::OkStatus();
}

// Also after an error: what was begun uses memory that is given back.
void CudaBackend::WaitForDevice(absl::Status* status) {
  if (on_device_) {
    SyCudaError error = {};
    const int waited = api_.ffn_wait(ffn_, &error);
    if (status->ok()) *status = device::ToStatus(waited, error);
    on_device_ = false;
  }
  Unpin();
}

absl::Status CudaBackend::ComputeFrame() {
  TakePayloads();
  for (size_t first = 0;;) {
    SY_RETURN_IF_ERROR(PinRuns(first));
    const bool last = first + pinned_.size() == batch_.runs.size();
    SY_RETURN_IF_ERROR(ComputeRuns(first == 0, last));
    if (last) return absl::OkStatus();
    first += pinned_.size();
    absl::Status waited;
    WaitForDevice(&waited);
    SY_RETURN_IF_ERROR(waited);
  }
}

absl::Status CudaBackend::ComputeRuns(bool first, bool last) {
  if (first) SY_RETURN_IF_ERROR(Begin());
  on_device_ = true;
  SyCudaError error = {};
  SY_RETURN_IF_ERROR(device::ToStatus(
      api_.ffn_compute(ffn_, runs_.data(), static_cast<int32_t>(runs_.size()), &error), error));
  if (!last) return absl::OkStatus();
  return device::ToStatus(
      api_.ffn_finish(ffn_, outs_.data(), static_cast<int32_t>(outs_.size()), &error), error);
}

// As many experts from `first` on as there is room for, and one at least.
absl::Status CudaBackend::PinRuns(size_t first) {
  runs_.clear();
  for (const ExpertRun& run : batch_.runs.subspan(first)) {
    const ExpertId id{batch_.layer, run.expert};
    const absl::StatusOr<const void*> block = memory_.Pin(id, /*wait=*/pinned_.empty());
    if (absl::IsResourceExhausted(block.status()) && !pinned_.empty()) break;
    if (!block.ok()) return block.status();
    pinned_.push_back(id);
    runs_.push_back({*block, static_cast<int32_t>(run.first), static_cast<int32_t>(run.count)});
  }
  return absl::OkStatus();
}

void CudaBackend::Unpin() {
  for (const ExpertId id : pinned_) memory_.Unpin(id);
  pinned_.clear();
}

absl::Status CudaBackend::Begin() {
  SyCudaError error = {};
  if (ffn_ == nullptr) {
    const SyCudaFfnSpec spec = *memory_.spec();  // there is one, as experts are pinned
    const int code = api_.ffn_create(memory_.cuda()->context(), &spec, &ffn_, &error);
    SY_RETURN_IF_ERROR(device::ToStatus(code, error));
  }
  const SyCudaFrameSize size = SizeOf();
  SyCudaFrame frame;
  SY_RETURN_IF_ERROR(device::ToStatus(api_.ffn_begin(ffn_, &size, &frame, &error), error));
  on_device_ = true;
  SY_RETURN_IF_ERROR(SendRows(frame));
  Fill(frame);
  return absl::OkStatus();
}

// From where they came, if the device can copy from there.
absl::Status CudaBackend::SendRows(const SyCudaFrame& frame) {
  for (size_t p = 0; p < answers_.size(); ++p) {
    const Call& call = batch_.parts[p].call;
    const int32_t first = batch_.base[p];
    if (call.rows == 0) continue;
    const void* rows = call.payload.data();
    if (call.payload.kind() != expertwire::MemoryKind::kPinned) {
      uint16_t* const staged = frame.x + static_cast<size_t>(first) * static_cast<size_t>(hidden_);
      std::memcpy(staged, rows, call.payload.bytes());
      rows = staged;
    }
    SyCudaError error = {};
    SY_RETURN_IF_ERROR(device::ToStatus(
        api_.ffn_rows(ffn_, first, static_cast<int32_t>(call.rows), rows, &error), error));
  }
  return absl::OkStatus();
}

void CudaBackend::TakePayloads() {
  out_at_.clear();
  outs_.clear();
  uint64_t at = 0;
  for (size_t p = 0; p < answers_.size(); ++p) {
    Answer& answer = answers_[p];
    out_at_.push_back(at);
    if (answer.sums == 0 && answer.rows == 0) continue;
    const size_t bytes = batch_.work[p].layout.bytes(static_cast<uint32_t>(hidden_), DType::kBF16);
    answer.payload = buffers_.Take(bytes);
    outs_.push_back({answer.payload.mutable_data(), at, bytes});
    at += expertwire::AlignUp(bytes);
  }
}

SyCudaFrameSize CudaBackend::SizeOf() {
  SyCudaFrameSize size{.pairs = static_cast<int32_t>(batch_.gather.size())};
  for (size_t p = 0; p < answers_.size(); ++p) {
    size.rows += static_cast<int32_t>(batch_.parts[p].call.rows);
    if (answers_[p].sums == 0 && answers_[p].rows == 0) continue;
    size.sums += static_cast<int32_t>(answers_[p].sums);
    size.entries += answers_[p].sums == 0 ? 0 : static_cast<int32_t>(batch_.work[p].order.size());
    size.copies += static_cast<int32_t>(answers_[p].rows);
  }
  if (!outs_.empty()) size.out_bytes = expertwire::AlignUp(outs_.back().at + outs_.back().bytes);
  return size;
}

void CudaBackend::Fill(const SyCudaFrame& frame) const {
  std::memcpy(frame.gather, batch_.gather.data(), batch_.gather.size_bytes());
  const auto hidden = static_cast<size_t>(hidden_);
  size_t sum = 0, entry = 0, copy = 0;
  frame.sum_first[0] = 0;
  for (size_t p = 0; p < answers_.size(); ++p) {
    const Call& call = batch_.parts[p].call;
    const PartWork& work = batch_.work[p];
    for (size_t s = 0; s < answers_[p].sums; ++s) {
      for (uint32_t e = work.first[s]; e < work.first[s + 1]; ++e, ++entry) {
        const uint32_t i = work.order[e];
        frame.entry_pair[entry] = static_cast<int32_t>(work.pair[i]);
        frame.entry_weight[entry] = call.weights[i];
      }
      frame.sum_at[sum++] = out_at_[p] + s * hidden * 2;
      frame.sum_first[sum] = static_cast<int32_t>(entry);
    }
    if (answers_[p].rows == 0) continue;
    const size_t rows_at =
        out_at_[p] + work.layout.rows_offset(static_cast<uint32_t>(hidden_), DType::kBF16);
    for (const Segment& segment : call.segments) {
      if (segment.result != pb::ROWS) continue;
      for (uint32_t i = segment.begin; i < segment.begin + segment.count; ++i, ++copy) {
        // kNoPair is -1: a row of zeros.
        frame.copy_pair[copy] = static_cast<int32_t>(work.pair[i]);
        frame.copy_at[copy] = rows_at + size_t{work.layout.slot[i]} * hidden * 4;
      }
    }
  }
}

}  // namespace switchyard::worker
