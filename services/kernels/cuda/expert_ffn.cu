#include "services/kernels/cuda/expert_ffn.h"

#include <algorithm>

#include "services/kernels/cuda/combine.cuh"
#include "services/kernels/cuda/grouped_matmul_launch.cuh"

using namespace switchyard::cuda;

namespace {

constexpr int kMostRuns = 65535;  // blocks of a grid's second dimension

}  // namespace

SyCudaFfn::SyCudaFfn(SyCudaContext& context, const SyCudaFfnSpec& spec)
    : context_(context), spec_(spec), products_(context, spec) {}

SyCudaFfn::~SyCudaFfn() {
  cudaSetDevice(context_.device);
  if (stream_ != nullptr) {
    cudaStreamSynchronize(stream_);
    cudaStreamDestroy(stream_);
  }
}

int SyCudaFfn::Prepare(SyCudaError* error) {
  SY_CUDA_TRY(cudaSetDevice(context_.device));
  SY_CUDA_TRY(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
  return products_.Prepare(error);
}

size_t SyCudaFfn::pair_bytes() const {
  const auto hidden = static_cast<size_t>(spec_.hidden),
             width = static_cast<size_t>(spec_.intermediate);
  // The row and its result, what lies between, what is asked for, and its places in the lists.
  return hidden * (2 + 1 + 4 + 4) + width * (2 + 1) + 128;
}

int SyCudaFfn::Begin(const SyCudaFrameSize& size, SyCudaFrame* frame, SyCudaError* error) {
  if (size.rows <= 0 || size.pairs <= 0 || size.sums < 0 || size.entries < 0 || size.copies < 0) {
    return Fail(error, SY_CUDA_INVALID, "a frame of %d rows, %d pairs, %d sums of %d, %d copies",
                size.rows, size.pairs, size.sums, size.entries, size.copies);
  }
  SY_CUDA_TRY(cudaSetDevice(context_.device));
  size_ = size;
  copied_ = false;
  runs_ = matrices_ = 0;
  pairs_ = 0;
  at_ = {};
  const auto part = [this](size_t& at, size_t bytes) {
    at = at_.bytes;
    at_.bytes += (bytes + 255) / 256 * 256;
  };
  const auto of = [](int32_t count, size_t bytes) { return static_cast<size_t>(count) * bytes; };
  part(at_.x, of(size.rows, 2 * static_cast<size_t>(spec_.hidden)));
  part(at_.gather, of(size.pairs, 4));
  part(at_.sum_first, of(size.sums + 1, 4));
  part(at_.entry_pair, of(size.entries, 4));
  part(at_.entry_weight, of(size.entries, 4));
  part(at_.sum_at, of(size.sums, 8));
  part(at_.copy_pair, of(size.copies, 4));
  part(at_.copy_at, of(size.copies, 8));
  part(at_.runs, of(size.pairs, sizeof(RowRun)));
  part(at_.matrices, of(size.pairs, 2 * sizeof(Matrix)));
  for (const int status :
       {pinned_.Reserve(at_.bytes, error), in_.Reserve(at_.bytes, error),
        products_.Reserve(size.rows, size.pairs, error), out_.Reserve(size.out_bytes, error)}) {
    if (status != SY_CUDA_OK) return status;
  }
  unsigned char* const p = pinned_.data();
  *frame = {.x = reinterpret_cast<uint16_t*>(p + at_.x),
            .gather = reinterpret_cast<int32_t*>(p + at_.gather),
            .sum_first = reinterpret_cast<int32_t*>(p + at_.sum_first),
            .entry_pair = reinterpret_cast<int32_t*>(p + at_.entry_pair),
            .entry_weight = reinterpret_cast<float*>(p + at_.entry_weight),
            .sum_at = reinterpret_cast<uint64_t*>(p + at_.sum_at),
            .copy_pair = reinterpret_cast<int32_t*>(p + at_.copy_pair),
            .copy_at = reinterpret_cast<uint64_t*>(p + at_.copy_at)};
  return SY_CUDA_OK;
}

void SyCudaFfn::AddMatrices(const SyCudaRun* runs, int32_t count) {
  auto* const gate_up = reinterpret_cast<Matrix*>(pinned_.data() + at_.matrices);
  Matrix* const down = gate_up + size_.pairs;
  for (int32_t r = 0; r < count; ++r) {
    gate_up[matrices_ + r] = products_.GateUp(runs[r].expert);
    down[matrices_ + r] = products_.Down(runs[r].expert);
  }
}

void SyCudaFfn::AddPieces(const SyCudaRun* runs, int32_t count) {
  batches_.clear();
  int most = 0;
  for (int32_t r = 0; r < count; ++r) most = std::max(most, runs[r].count);
  if (!products_.wgmma()) return AddPieces(runs, count, RowsABlock(most), 0);
  // An expert with few rows is not computed as one with many.
  for (const int rows : {256, 192, 128, 64, 32, 16, 8}) AddPieces(runs, count, rows, rows);
}

// With a class, only pieces that are of it: what is left of a run decides.
void SyCudaFfn::AddPieces(const SyCudaRun* runs, int32_t count, int rows, int class_of_rows) {
  auto* const pieces = reinterpret_cast<RowRun*>(pinned_.data() + at_.runs);
  const int first = runs_;
  for (int32_t r = 0; r < count; ++r) {
    for (int i = 0, step = rows; i < runs[r].count; i += step) {
      const int left = runs[r].count - i;
      if (class_of_rows != 0) step = products_.RowsARun(left);
      if (class_of_rows != 0 && step != class_of_rows) continue;
      pieces[runs_++] = {matrices_ + r, runs[r].first + i, std::min(step, left)};
    }
  }
  for (int from = first; from < runs_; from += kMostRuns) {
    const auto* const runs_there = reinterpret_cast<const RowRun*>(in_.data() + at_.runs);
    batches_.push_back({rows, runs_there + from, std::min(kMostRuns, runs_ - from)});
  }
}

// All lists with the first runs, or only further ones.
cudaError_t SyCudaFfn::CopyIn(int first_run, int runs, int first_matrix, int matrices) {
  const auto copy = [this](size_t at, size_t bytes) {
    return cudaMemcpyAsync(in_.data() + at, pinned_.data() + at, bytes, cudaMemcpyHostToDevice,
                           stream_);
  };
  if (!copied_) {
    copied_ = true;
    return copy(at_.gather, at_.bytes - at_.gather);
  }
  const auto n = [](int count) { return static_cast<size_t>(count); };
  if (const cudaError_t error =
          copy(at_.runs + n(first_run) * sizeof(RowRun), n(runs) * sizeof(RowRun));
      error != cudaSuccess) {
    return error;
  }
  for (const int half : {0, size_.pairs}) {
    const cudaError_t error =
        copy(at_.matrices + n(half + first_matrix) * sizeof(Matrix), n(matrices) * sizeof(Matrix));
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

int SyCudaFfn::Rows(int32_t first, int32_t count, const void* rows, SyCudaError* error) {
  if (first < 0 || count <= 0 || count > size_.rows - first || copied_) {
    return Fail(error, SY_CUDA_INVALID, "rows %d to %d of %d", first, first + count, size_.rows);
  }
  const size_t row = 2 * static_cast<size_t>(spec_.hidden);
  SY_CUDA_TRY(cudaMemcpyAsync(in_.data() + at_.x + static_cast<size_t>(first) * row, rows,
                              static_cast<size_t>(count) * row, cudaMemcpyHostToDevice, stream_));
  return SY_CUDA_OK;
}

int SyCudaFfn::Compute(const SyCudaRun* runs, int32_t count, SyCudaError* error) {
  int64_t pairs = pairs_, first_pair = size_.pairs, end_pair = 0;
  for (int32_t r = 0; r < count; ++r) {
    const SyCudaRun& run = runs[r];
    if (run.expert == nullptr || run.count <= 0 || run.first < 0 ||
        run.count > size_.pairs - run.first) {
      return Fail(error, SY_CUDA_INVALID, "run %d has pairs %d to %d of %d", r, run.first,
                  run.first + run.count, size_.pairs);
    }
    pairs += run.count;
    first_pair = std::min<int64_t>(first_pair, run.first);
    end_pair = std::max<int64_t>(end_pair, run.first + run.count);
  }
  if (pairs > size_.pairs) {
    return Fail(error, SY_CUDA_INVALID, "runs of more pairs than the frame's %d", size_.pairs);
  }
  if (count == 0) return SY_CUDA_OK;
  pairs_ = pairs;
  const int first = runs_, first_matrix = matrices_;
  AddMatrices(runs, count);
  AddPieces(runs, count);
  matrices_ += count;
  const bool fresh = !copied_;
  SY_CUDA_TRY(CopyIn(first, runs_ - first, first_matrix, count));
  if (fresh) {
    SY_CUDA_TRY(products_.TakeRows(reinterpret_cast<const uint16_t*>(in_.data() + at_.x),
                                   size_.rows, stream_));
  }
  return Multiply(first_pair, end_pair, error);
}

int SyCudaFfn::Multiply(int64_t first_pair, int64_t end_pair, SyCudaError* error) {
  const unsigned char* const in = in_.data();
  const auto* const matrices = reinterpret_cast<const Matrix*>(in + at_.matrices);
  SY_CUDA_TRY(products_.Multiply({.gate_up = matrices,
                                  .down = matrices + size_.pairs,
                                  .x = reinterpret_cast<const uint16_t*>(in + at_.x),
                                  .gather = reinterpret_cast<const int32_t*>(in + at_.gather),
                                  .first = first_pair,
                                  .end = end_pair},
                                 batches_, stream_));
  return SY_CUDA_OK;
}

int SyCudaFfn::Finish(const SyCudaOut* outs, int32_t count, SyCudaError* error) {
  for (int32_t i = 0; i < count; ++i) {
    if (outs[i].at > size_.out_bytes || outs[i].bytes > size_.out_bytes - outs[i].at) {
      return Fail(error, SY_CUDA_INVALID, "output %d ends beyond the frame's outputs", i);
    }
  }
  const unsigned char* const in = in_.data();
  const CombineArgs args{.y = products_.y(),
                         .hidden = spec_.hidden,
                         .sum_first = reinterpret_cast<const int32_t*>(in + at_.sum_first),
                         .entry_pair = reinterpret_cast<const int32_t*>(in + at_.entry_pair),
                         .entry_weight = reinterpret_cast<const float*>(in + at_.entry_weight),
                         .sum_at = reinterpret_cast<const uint64_t*>(in + at_.sum_at),
                         .copy_pair = reinterpret_cast<const int32_t*>(in + at_.copy_pair),
                         .copy_at = reinterpret_cast<const uint64_t*>(in + at_.copy_at),
                         .out = out_.data()};
  const auto columns =
      static_cast<unsigned>((spec_.hidden + kCombineColumns - 1) / kCombineColumns);
  const auto grid = [&](int32_t rows) { return dim3(static_cast<unsigned>(rows), columns); };
  if (size_.sums > 0) {
    SY_CUDA_TRY(Launch(&SumPairs, grid(size_.sums), dim3(kCombineThreads), 0, stream_, args));
  }
  if (size_.copies > 0) {
    SY_CUDA_TRY(Launch(&CopyPairs, grid(size_.copies), dim3(kCombineThreads), 0, stream_, args));
  }
  for (int32_t i = 0; i < count; ++i) {
    SY_CUDA_TRY(cudaMemcpyAsync(outs[i].to, out_.data() + outs[i].at, outs[i].bytes,
                                cudaMemcpyDeviceToHost, stream_));
  }
  return SY_CUDA_OK;
}

int SyCudaFfn::Poll(int32_t* done, SyCudaError* error) {
  const cudaError_t status = cudaStreamQuery(stream_);
  *done = status != cudaErrorNotReady;
  return status == cudaErrorNotReady || status == cudaSuccess ? SY_CUDA_OK
                                                              : Fail(error, status, "the frame");
}

int SyCudaFfn::Wait(SyCudaError* error) {
  SY_CUDA_TRY(cudaStreamSynchronize(stream_));
  return SY_CUDA_OK;
}
