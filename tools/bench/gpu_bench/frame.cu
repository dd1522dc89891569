// A frame from its first byte to its last: another process writes rows into memory that both share
// and reads the answer from it; between, they pass through pinned memory and the device. 64 rows of
// 7168 over 32 experts, eight each.
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <csignal>

#include "tools/bench/gpu_bench/frames.cuh"

namespace switchyard::gpu_bench {
namespace {

constexpr int kHidden = 7168, kIntermediate = 2048, kRows = 64, kExperts = 32, kTopK = 8;
constexpr int kFrames = 60, kWarmups = 10;
constexpr size_t kRowBytes = size_t{kRows} * kHidden * 2;  // rows, and answers

// Of both processes.
struct Shared {
  std::atomic<int> asked, answered;  // frames
  double ms[kFrames];
  alignas(4096) unsigned char rows[kRowBytes];
  alignas(4096) unsigned char answer[kRowBytes];
};

void Await(const std::atomic<int>& counter, int value, pid_t child) {
  for (int64_t turns = 0; counter.load(std::memory_order_acquire) < value; ++turns) {
    if (child != 0 && turns % 1'000'000 == 0 && waitpid(child, nullptr, WNOHANG) != 0) {
      Die("the process that asks has ended");
    }
  }
}

// The asking side: what a router does with a frame.
void Ask(Shared& shared) {
  std::vector<unsigned char> rows(kRowBytes), answer(kRowBytes);
  Random random(9);
  for (size_t i = 0; i < kRowBytes; i += 2) {  // bf16 of magnitudes about 1
    const uint32_t bits = (random.Bits() & 0x80ff) | 0x3f00;
    rows[i] = static_cast<unsigned char>(bits), rows[i + 1] = static_cast<unsigned char>(bits >> 8);
  }
  for (int i = 0; i < kFrames; ++i) {
    Await(shared.answered, i, 0);  // 0: the other side is ready
    const auto begin = std::chrono::steady_clock::now();
    std::memcpy(shared.rows, rows.data(), kRowBytes);
    shared.asked.store(i + 1, std::memory_order_release);
    Await(shared.answered, i + 1, 0);
    std::memcpy(answer.data(), shared.answer, kRowBytes);
    const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - begin;
    shared.ms[i] = took.count();
  }
}

// The computing side: what a worker does.
void Answer(Shared& shared, Frame& frame, pid_t child) {
  shared.answered.store(0, std::memory_order_release);
  for (int i = 0; i < kFrames; ++i) {
    Await(shared.asked, i + 1, child);
    frame.Begin();
    std::memcpy(frame.x(), shared.rows, kRowBytes);
    frame.SendRows();
    frame.Compute();
    frame.Finish();
    frame.Wait();
    std::memcpy(shared.answer, frame.out(), kRowBytes);
    shared.answered.store(i + 1, std::memory_order_release);
  }
  waitpid(child, nullptr, 0);
}

double Median(std::vector<double> all) {
  std::sort(all.begin(), all.end());
  return (all[(all.size() - 1) / 2] + all[all.size() / 2]) / 2;
}

}  // namespace

void MeasureFrame(const std::string& format) {
  void* const memory =
      mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) Die("mmap of %zu bytes failed", sizeof(Shared));
  Shared& shared = *static_cast<Shared*>(memory);
  shared.asked = 0, shared.answered = -1;
  const pid_t parent = getpid(), child = fork();
  if (child < 0) Die("fork failed");
  if (child == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);  // it waits for nobody who is gone
    if (getppid() == parent) Ask(shared);
    _exit(0);
  }
  Gpu gpu;
  Experts experts(gpu, format, kHidden, kIntermediate, kExperts);
  Frame frame(gpu, experts, kRows, kExperts, kTopK, 42);
  const std::unique_ptr<Kernels> kernels = KernelsOf(experts, frame);
  Answer(shared, frame, child);
  const double ms = Median({shared.ms + kWarmups, shared.ms + kFrames});

  // What no way of doing it can leave out, each alone.
  Stopwatch watch(gpu);
  const cudaStream_t stream = experts.ffn()->stream();
  void *const pinned = gpu.Pinned(kRowBytes), *const device = gpu.Device(kRowBytes);
  const auto copy = [&](void* to, const void* from, cudaMemcpyKind kind) {
    return watch.MedianMs(
        stream, [&] { SY_BENCH_CUDA(cudaMemcpyAsync(to, from, kRowBytes, kind, stream)); });
  };
  const double in = copy(device, pinned, cudaMemcpyHostToDevice);
  const double compute = watch.MedianMs(stream, [&] { kernels->Launch(); });
  const double out = copy(pinned, device, cudaMemcpyDeviceToHost);
  Line("frame")
      .Text("format", format)
      .Number("rows", kRows)
      .Number("experts", kExperts)
      .Number("top_k", kTopK)
      .Number("ms", ms)
      .Number("copy_in_ms", in)
      .Number("compute_ms", compute)
      .Number("copy_out_ms", out);
}

}  // namespace switchyard::gpu_bench
