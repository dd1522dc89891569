#include "expert-worker/device/cuda_backend.h"

#include <cstring>

#include "services/base/status.h"

namespace switchyard::worker {
namespace {

using expertwire::Answer;
using expertwire::Call;
using expertwire::Segment;
namespace pb = expertwire::pb;

}  // namespace

CudaBackend::CudaBackend(const ModelSpec& spec, DeviceMemory& memory)
    : hidden_(spec.hidden), memory_(memory), api_(memory.cuda()->api()) {}

CudaBackend::~CudaBackend() {
  if (ffn_ != nullptr) api_.ffn_destroy(ffn_);
}

size_t CudaBackend::bytes_a_pair() const {
  // As the plugin has it, but for what lies between gate and down.
  return ffn_ != nullptr ? api_.ffn_pair_bytes(ffn_) : static_cast<size_t>(hidden_) * 10;
}

absl::Status CudaBackend::Compute(const Batch& batch, std::span<Answer> answers) {
  const SyCudaFrameSize size = SizeOf(batch, answers);
  absl::Status status = batch.runs.empty() ? absl::OkStatus() : ComputeFrame(batch, answers, size);
  if (!status.ok()) return Annotate(status, memory_.cuda()->name());
  for (size_t p = 0; p < answers.size(); ++p) {
    Answer& answer = answers[p];
    if (answer.sums == 0 && answer.rows == 0) continue;
    const auto hidden = static_cast<uint32_t>(hidden_);
    const size_t bytes = batch.work[p].layout.bytes(hidden, DType::kBF16);
    answer.payload = buffers_.Take(bytes);
    if (batch.runs.empty()) {  // nothing of it is held
      std::memset(answer.payload.mutable_data(), 0, bytes);
      continue;
    }
    std::memcpy(answer.payload.mutable_data(), out_.data() + out_at_[p], bytes);
    const size_t sums = size_t{answer.sums} * hidden * 2;
    const size_t rows = batch.work[p].layout.rows_offset(hidden, DType::kBF16);
    std::memset(answer.payload.mutable_data() + sums, 0, rows - sums);
  }
  return absl::OkStatus();
}

absl::Status CudaBackend::ComputeFrame(const Batch& batch, std::span<const Answer> answers,
                                       const SyCudaFrameSize& size) {
  absl::Status status = MakeOut(size.out_bytes);
  bool begun = false;
  for (size_t first = 0; status.ok() && first < batch.runs.size(); first += pinned_.size()) {
    Unpin();
    status = PinRuns(batch, first);
    if (status.ok() && !begun) {
      status = Begin(batch, answers, size);
      begun = true;
    }
    if (!status.ok()) break;
    SyCudaError error = {};
    const int code =
        api_.ffn_compute(ffn_, runs_.data(), static_cast<int32_t>(runs_.size()), &error);
    status = device::ToStatus(code, error);
    const bool last = first + pinned_.size() == batch.runs.size();
    if (status.ok() && last) {
      status = device::ToStatus(api_.ffn_finish(ffn_, out_.data(), &error), error);
    }
    // Also after an error: what was begun reads memory that is given back.
    const int waited = api_.ffn_wait(ffn_, &error);
    if (status.ok()) status = device::ToStatus(waited, error);
  }
  Unpin();
  return status;
}

// As many experts from `first` on as there is room for, and one at least.
absl::Status CudaBackend::PinRuns(const Batch& batch, size_t first) {
  runs_.clear();
  for (const ExpertRun& run : batch.runs.subspan(first)) {
    const ExpertId id{batch.layer, run.expert};
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

absl::Status CudaBackend::Begin(const Batch& batch, std::span<const Answer> answers,
                                const SyCudaFrameSize& size) {
  SyCudaError error = {};
  if (ffn_ == nullptr) {
    const SyCudaFfnSpec spec = *memory_.spec();  // there is one, as experts are pinned
    const int code = api_.ffn_create(memory_.cuda()->context(), &spec, &ffn_, &error);
    SY_RETURN_IF_ERROR(device::ToStatus(code, error));
  }
  SyCudaFrame frame;
  SY_RETURN_IF_ERROR(device::ToStatus(api_.ffn_begin(ffn_, &size, &frame, &error), error));
  Fill(batch, answers, frame);
  return absl::OkStatus();
}

absl::Status CudaBackend::MakeOut(size_t bytes) {
  if (bytes <= out_bytes_) return absl::OkStatus();
  out_ = {};
  out_bytes_ = 0;
  SY_ASSIGN_OR_RETURN(out_, device::CudaBlock::Allocate(memory_.cuda(), SY_CUDA_PINNED, 2 * bytes));
  out_bytes_ = 2 * bytes;
  return absl::OkStatus();
}

SyCudaFrameSize CudaBackend::SizeOf(const Batch& batch, std::span<const Answer> answers) {
  SyCudaFrameSize size{.pairs = static_cast<int32_t>(batch.gather.size())};
  out_at_.clear();
  for (size_t p = 0; p < answers.size(); ++p) {
    size.rows += static_cast<int32_t>(batch.parts[p].call.rows);
    out_at_.push_back(size.out_bytes);
    if (answers[p].sums == 0 && answers[p].rows == 0) continue;
    const PartWork& work = batch.work[p];
    size.sums += static_cast<int32_t>(answers[p].sums);
    size.entries += answers[p].sums == 0 ? 0 : static_cast<int32_t>(work.order.size());
    size.copies += static_cast<int32_t>(answers[p].rows);
    size.out_bytes +=
        expertwire::AlignUp(work.layout.bytes(static_cast<uint32_t>(hidden_), DType::kBF16));
  }
  return size;
}

void CudaBackend::Fill(const Batch& batch, std::span<const Answer> answers,
                       const SyCudaFrame& frame) const {
  std::memcpy(frame.gather, batch.gather.data(), batch.gather.size_bytes());
  const auto hidden = static_cast<size_t>(hidden_);
  size_t sum = 0, entry = 0, copy = 0;
  frame.sum_first[0] = 0;
  for (size_t p = 0; p < answers.size(); ++p) {
    const Call& call = batch.parts[p].call;
    const PartWork& work = batch.work[p];
    std::memcpy(frame.x + static_cast<size_t>(batch.base[p]) * hidden, call.payload.data(),
                call.payload.bytes());
    for (size_t s = 0; s < answers[p].sums; ++s) {
      for (uint32_t e = work.first[s]; e < work.first[s + 1]; ++e, ++entry) {
        const uint32_t i = work.order[e];
        frame.entry_pair[entry] = static_cast<int32_t>(work.pair[i]);
        frame.entry_weight[entry] = call.weights[i];
      }
      frame.sum_at[sum++] = out_at_[p] + s * hidden * 2;
      frame.sum_first[sum] = static_cast<int32_t>(entry);
    }
    if (answers[p].rows == 0) continue;
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
