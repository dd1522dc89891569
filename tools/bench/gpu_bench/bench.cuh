// What the figures' programs share: a device behind the plugin's tables, times, random weights, and
// lines of JSON. The plugin's sources are linked in, so that its streams can be captured.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "services/kernels/cuda/abi.h"
#include "services/kernels/cuda/backbone_abi.h"
#include "services/kernels/cuda/tiles.h"

namespace switchyard::gpu_bench {

[[noreturn]] inline void Die(const char* format, ...) __attribute__((format(printf, 1, 2)));
inline void Die(const char* format, ...) {
  va_list args;
  va_start(args, format);
  std::vfprintf(stderr, format, args);
  va_end(args);
  std::fputc('\n', stderr);
  std::exit(1);
}

#define SY_BENCH_CUDA(call)                                                                      \
  do {                                                                                           \
    const cudaError_t sy_bench_error = (call);                                                   \
    if (sy_bench_error != cudaSuccess) Die("%s: %s", #call, cudaGetErrorString(sy_bench_error)); \
  } while (false)

// xorshift64*: the same choices in every run.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15u + 0x1234567u) {}
  uint32_t Bits() {
    state_ ^= state_ >> 12, state_ ^= state_ << 25, state_ ^= state_ >> 27;
    return static_cast<uint32_t>(state_ * 0x2545f4914f6cdd1du >> 32);
  }
  int Below(int n) { return static_cast<int>(Bits() % static_cast<uint32_t>(n)); }
  // `count` different numbers below n, ascending.
  std::vector<int> Choose(int count, int n) {
    std::vector<int> all;
    for (int i = 0; i < n; ++i) all.push_back(i);
    for (int i = 0; i < count; ++i) std::swap(all[i], all[i + Below(n - i)]);
    all.resize(static_cast<size_t>(count));
    std::sort(all.begin(), all.end());
    return all;
  }

 private:
  uint64_t state_;
};

// The plugin's tables on device 0, and memory that lives as long.
class Gpu {
 public:
  Gpu();
  ~Gpu();
  Gpu(const Gpu&) = delete;
  Gpu& operator=(const Gpu&) = delete;

  const SyCudaApi& api() const { return *SyCudaPlugin(SY_CUDA_ABI_VERSION); }
  const SyCudaBackboneApi& backbone() const {
    return *SyCudaBackbonePlugin(SY_CUDA_BACKBONE_ABI_VERSION);
  }
  SyCudaContext* context() const { return context_; }
  const cudaDeviceProp& properties() const { return properties_; }
  SyCudaError* error() { return &error_; }
  void Ok(int status, const char* call) {
    if (status != SY_CUDA_OK) Die("%s: %s", call, error_.text);
  }

  // Freed with `this`.
  void* Device(size_t bytes) { return Take(SY_CUDA_DEVICE, bytes); }
  void* Pinned(size_t bytes) { return Take(SY_CUDA_PINNED, bytes); }
  // Random numbers of some bf16, of a size of about 0.02, or tiles of a matrix.
  uint16_t* RandomBf16(size_t count, uint32_t seed);
  void FillTiles(const cuda::TileShape& shape, void* tiles, uint32_t seed);
  size_t free_bytes();

 private:
  void* Take(SyCudaMemory memory, size_t bytes);

  SyCudaContext* context_ = nullptr;
  cudaDeviceProp properties_ = {};
  SyCudaError error_ = {};
  std::vector<std::pair<SyCudaMemory, void*>> blocks_;
};

// Medians over repetitions on a stream, after some to warm up, with other data read into the L2
// cache before each. Events are around what is enqueued; the reading takes long enough for all of
// that to be enqueued before it begins.
class Stopwatch {
 public:
  explicit Stopwatch(Gpu& gpu);
  ~Stopwatch();
  Stopwatch(const Stopwatch&) = delete;
  Stopwatch& operator=(const Stopwatch&) = delete;

  template <typename F>
  double MedianMs(cudaStream_t stream, F enqueue, int most = 50) {
    std::vector<double> all;
    double total = 0;
    for (int i = 0; i < kWarmups + kFewest || (i < kWarmups + most && total < kEnoughMs); ++i) {
      Begin(stream);
      enqueue();
      const double ms = End(stream);
      if (i >= kWarmups) all.push_back(ms), total += ms;
    }
    std::sort(all.begin(), all.end());
    return (all[(all.size() - 1) / 2] + all[all.size() / 2]) / 2;
  }

 private:
  static constexpr int kWarmups = 3, kFewest = 7;
  static constexpr double kEnoughMs = 1500;

  void Begin(cudaStream_t stream);
  double End(cudaStream_t stream);

  void* flush_ = nullptr;
  size_t flush_bytes_ = 0;
  cudaEvent_t begin_ = nullptr, end_ = nullptr;
};

// What `enqueue` starts on a stream, as a graph without the copies from and to the host: what they
// brought lies where an earlier run left it.
class Kernels {
 public:
  template <typename F>
  Kernels(cudaStream_t stream, F enqueue) : stream_(stream) {
    SY_BENCH_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed));
    enqueue();
    SY_BENCH_CUDA(cudaStreamEndCapture(stream, &graph_));
    RemoveCopies();
  }
  ~Kernels();
  Kernels(const Kernels&) = delete;
  Kernels& operator=(const Kernels&) = delete;

  cudaGraph_t graph() const { return graph_; }
  size_t nodes() const { return nodes_; }
  void Launch() {
    if (exec_ == nullptr) SY_BENCH_CUDA(cudaGraphInstantiate(&exec_, graph_, 0));
    SY_BENCH_CUDA(cudaGraphLaunch(exec_, stream_));
  }

 private:
  void RemoveCopies();

  cudaStream_t stream_ = nullptr;
  cudaGraph_t graph_ = nullptr;
  cudaGraphExec_t exec_ = nullptr;
  size_t nodes_ = 0;
};

// A line of JSON on standard output.
class Line {
 public:
  explicit Line(const char* kind) { Text("kind", kind); }
  ~Line() {
    std::printf("{%s}\n", text_.c_str());
    std::fflush(stdout);
  }
  Line(const Line&) = delete;
  Line& operator=(const Line&) = delete;

  Line& Text(const char* name, const std::string& value) {
    std::string escaped;
    for (const char c : value) {
      if (c == '"' || c == '\\') escaped += '\\';
      escaped += static_cast<unsigned char>(c) < 32 ? ' ' : c;
    }
    return Put(name, "\"" + escaped + "\"");
  }
  Line& Number(const char* name, double value) {
    char digits[64];
    std::snprintf(digits, sizeof(digits), "%.12g", value);
    return Put(name, digits);
  }

 private:
  Line& Put(const char* name, const std::string& value) {
    text_ += (text_.empty() ? "\"" : ", \"") + std::string(name) + "\": " + value;
    return *this;
  }
  std::string text_;
};

// The programs, each of which prints its lines.
void MeasureLimits(Gpu& gpu);                                         // limits.cu
void MeasureFfn(Gpu& gpu, const std::vector<std::string>& words);     // ffn.cu
void MeasureMla(Gpu& gpu);                                            // mla.cu
void MeasureDecode(Gpu& gpu, const std::vector<std::string>& words);  // decode.cu
// Forks before the device is opened.
void MeasureFrame(const std::string& format);  // frame.cu

}  // namespace switchyard::gpu_bench
