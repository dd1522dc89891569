// machine_bench [THREADS [FILE]]: what this machine can do at most, as JSON, best of several rounds
// with all threads at once: bytes read a second (GB/s) from memory in huge pages and from the first
// GiB or so of FILE, mapped as the servers map weights, and floating point operations of
// register-only loops (GFLOP/s) with each instruction that the kernels multiply with. Null: the CPU
// has no such instruction, or there is no FILE. The denominators of the shares that
// tools/bench/side_by_side reports.
#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <barrier>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "services/base/text.h"
#include "services/checkpoint/mapped_file.h"
#include "services/kernels/kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace switchyard {
namespace {

using Clock = std::chrono::steady_clock;
using kernels::Isa;

constexpr int kRounds = 9, kMostThreads = 1024;
constexpr int64_t kReadBytes = int64_t{1} << 30;  // of all threads; beyond any cache
constexpr int64_t kLeastReadBytes = int64_t{64} << 20;

// Seconds from the first thread's start of `body(thread)` to the last one's end, the best of
// kRounds. By the threads' own clocks: where they are as many as cores, nobody else gets one.
double BestSeconds(int threads, const std::function<void(int)>& body) {
  std::barrier start(threads);
  struct Span {
    Clock::time_point began, ended;
  };
  std::vector<std::array<Span, kRounds>> spans(static_cast<size_t>(threads));
  std::vector<std::thread> workers;
  for (int t = 0; t < threads; ++t) {
    workers.emplace_back([&, t] {
      for (Span& span : spans[static_cast<size_t>(t)]) {
        start.arrive_and_wait();
        span.began = Clock::now();
        body(t);
        span.ended = Clock::now();
      }
    });
  }
  for (std::thread& worker : workers) worker.join();
  double best = 1e9;
  for (size_t round = 0; round < kRounds; ++round) {
    Span all = spans[0][round];
    for (const auto& of_thread : spans) {
      all.began = std::min(all.began, of_thread[round].began);
      all.ended = std::max(all.ended, of_thread[round].ended);
    }
    best = std::min(best, std::chrono::duration<double>(all.ended - all.began).count());
  }
  return best;
}

// Streams through `bytes`, a multiple of 512, and returns something of all of it.
uint64_t ReadPortable(const char* data, int64_t bytes) {
  uint64_t sums[8] = {};
  const auto* words = reinterpret_cast<const uint64_t*>(data);
  for (int64_t i = 0; i < bytes / 8; i += 8) {
    for (int j = 0; j < 8; ++j) sums[j] ^= words[i + j];
  }
  uint64_t all = 0;
  for (const uint64_t sum : sums) all ^= sum;
  return all;
}

#if defined(__x86_64__)
__attribute__((target("avx2"))) uint64_t ReadAvx2(const char* data, int64_t bytes) {
  __m256i sums[8] = {};
  for (int64_t i = 0; i < bytes; i += 256) {
    for (int j = 0; j < 8; ++j) {
      const auto* at = reinterpret_cast<const __m256i*>(data + i + 32 * j);
      sums[j] = _mm256_xor_si256(sums[j], _mm256_load_si256(at));
    }
  }
  __m256i all = sums[0];
  for (int j = 1; j < 8; ++j) all = _mm256_xor_si256(all, sums[j]);
  return static_cast<uint64_t>(_mm256_extract_epi64(all, 0));
}

__attribute__((target("avx512f"))) uint64_t ReadAvx512(const char* data, int64_t bytes) {
  __m512i sums[8] = {};
  for (int64_t i = 0; i < bytes; i += 512) {
    for (int j = 0; j < 8; ++j) {
      sums[j] = _mm512_xor_si512(sums[j], _mm512_load_si512(data + i + 64 * j));
    }
  }
  __m512i all = sums[0];
  for (int j = 1; j < 8; ++j) all = _mm512_xor_si512(all, sums[j]);
  return static_cast<uint64_t>(_mm512_reduce_add_epi64(all));
}

// One round of each loop below is kInstructions independent instructions without memory.
constexpr int64_t kLoops = 2'000'000, kInstructions = 12;

#define SY_TWELVE(op, width)                                                                       \
  op " %%" width "14, %%" width "15, %%" width "0\n\t" op " %%" width "14, %%" width               \
     "15, %%" width "1\n\t" op " %%" width "14, %%" width "15, %%" width "2\n\t" op " %%" width    \
     "14, %%" width "15, %%" width "3\n\t" op " %%" width "14, %%" width "15, %%" width "4\n\t" op \
     " %%" width "14, %%" width "15, %%" width "5\n\t" op " %%" width "14, %%" width               \
     "15, %%" width "6\n\t" op " %%" width "14, %%" width "15, %%" width "7\n\t" op " %%" width    \
     "14, %%" width "15, %%" width "8\n\t" op " %%" width "14, %%" width "15, %%" width "9\n\t" op \
     " %%" width "14, %%" width "15, %%" width "10\n\t" op " %%" width "14, %%" width              \
     "15, %%" width "11\n\t"
#define SY_CLOBBERS                                                                        \
  "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", \
      "xmm11", "xmm14", "xmm15"

void FmaAvx2() {
  __asm__ volatile("vzeroall" ::: SY_CLOBBERS, "xmm12", "xmm13");
  for (int64_t i = 0; i < kLoops; ++i) {
    __asm__ volatile(SY_TWELVE("vfmadd231ps", "ymm")::: SY_CLOBBERS);
  }
}

void FmaAvx512() {
  __asm__ volatile("vzeroall" ::: SY_CLOBBERS, "xmm12", "xmm13");
  for (int64_t i = 0; i < kLoops; ++i) {
    __asm__ volatile(SY_TWELVE("vfmadd231ps", "zmm")::: SY_CLOBBERS);
  }
}

void DotBf16() {
  __asm__ volatile("vzeroall" ::: SY_CLOBBERS, "xmm12", "xmm13");
  for (int64_t i = 0; i < kLoops; ++i) {
    __asm__ volatile(SY_TWELVE("vdpbf16ps", "zmm")::: SY_CLOBBERS);
  }
}

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

constexpr int64_t kTileLoops = 400'000, kTileInstructions = 4;

void TileBf16() {
  const TileConfig config;
  __asm__ volatile("ldtilecfg %0" ::"m"(config));
  for (int64_t i = 0; i < kTileLoops; ++i) {
    __asm__ volatile(
        "tdpbf16ps %tmm4, %tmm6, %tmm0\n\ttdpbf16ps %tmm5, %tmm6, %tmm1\n\t"
        "tdpbf16ps %tmm4, %tmm7, %tmm2\n\ttdpbf16ps %tmm5, %tmm7, %tmm3");
  }
  __asm__ volatile("tilerelease");
}
#endif

bool Has(Isa isa) {
  const auto supported = kernels::SupportedIsas();
  return std::find(supported.begin(), supported.end(), isa) != supported.end();
}

int64_t BytesOfThread(int threads) {
  return std::max(kReadBytes / threads, kLeastReadBytes) / 4096 * 4096;
}

// Bytes a second, in GB; `data`: `bytes` for each thread, one behind the other.
double ReadRate(int threads, const char* data, int64_t bytes) {
  uint64_t (*read)(const char*, int64_t) = ReadPortable;
#if defined(__x86_64__)
  if (Has(Isa::kAvx2)) read = ReadAvx2;
  if (Has(Isa::kAvx512)) read = ReadAvx512;
#endif
  std::vector<uint64_t> seen(static_cast<size_t>(threads));
  const double seconds = BestSeconds(
      threads, [&](int t) { seen[static_cast<size_t>(t)] = read(data + t * bytes, bytes); });
  return static_cast<double>(bytes * threads) / seconds * 1e-9;
}

[[noreturn]] void Fail(std::string_view why) {
  std::fprintf(stderr, "machine_bench: %.*s\n", static_cast<int>(why.size()), why.data());
  std::exit(1);
}

double MemoryRate(int threads) {
  const int64_t bytes = BytesOfThread(threads);
  const auto all = static_cast<size_t>(bytes * threads);
  void* const memory =
      ::mmap(nullptr, all, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) Fail(std::string("memory to read: ") + std::strerror(errno));
  ::madvise(memory, all, MADV_HUGEPAGE);
  auto* const data = static_cast<char*>(memory);
  std::memset(data, 1, all);
  const double rate = ReadRate(threads, data, bytes);
  ::munmap(memory, all);
  return rate;
}

double FileRate(int threads, const char* path) {
  const auto file = checkpoint::MappedFile::Open(path);
  if (!file.ok()) Fail(ToStd(file.status().message()));
  const auto share = static_cast<int64_t>((*file)->size()) / threads / 4096 * 4096;
  const int64_t bytes = std::min(BytesOfThread(threads), share);
  if (bytes == 0) Fail(std::string(path) + ": too small to measure");
  const auto all = static_cast<uint64_t>(bytes * threads);
  if (const absl::Status mapped = (*file)->Map({{0, all}}, 1); !mapped.ok()) {
    Fail(ToStd(mapped.message()));
  }
  const auto* data = reinterpret_cast<const char*>((*file)->Find({0, all}));
  return ReadRate(threads, data, bytes);
}

void Print(const char* name, bool has, double value, bool last = false) {
  if (has) {
    std::printf("  \"%s\": %.2f%s\n", name, value, last ? "" : ",");
  } else {
    std::printf("  \"%s\": null%s\n", name, last ? "" : ",");
  }
}

// `flops` of one call of `body` on one thread.
void PrintPeak(const char* name, bool has, int threads, void (*body)(), int64_t flops, bool last) {
  const double seconds = has ? BestSeconds(threads, [&](int) { body(); }) : 1;
  Print(name, has, static_cast<double>(flops * threads) / seconds * 1e-9, last);
}

int Usage(std::FILE* to, int status) {
  std::fprintf(
      to, "machine_bench [THREADS [FILE]]: what this machine can do, as JSON; 1 to %d threads\n",
      kMostThreads);
  return status;
}

int Run(int argc, char** argv) {
  if (argc == 2 && std::string_view(argv[1]) == "--help") return Usage(stdout, 0);
  int threads = static_cast<int>(std::thread::hardware_concurrency());
  if (argc > 1) {
    const char* const end = argv[1] + std::strlen(argv[1]);
    const auto [at, error] = std::from_chars(argv[1], end, threads);
    if (error != std::errc() || at != end) return Usage(stderr, 2);
  }
  if (argc > 3 || threads < 1 || threads > kMostThreads) return Usage(stderr, 2);
  const bool has_file = argc > 2;
  const double file_rate = has_file ? FileRate(threads, argv[2]) : 0;
  std::printf("{\n  \"threads\": %d,\n", threads);
  Print("file_read_gb_s", has_file, file_rate);
#if defined(__x86_64__)
  Print("read_gb_s", true, MemoryRate(threads));
  PrintPeak("avx2_fma_gflop_s", Has(Isa::kAvx2), threads, FmaAvx2, kLoops * kInstructions * 16,
            false);
  PrintPeak("avx512_fma_gflop_s", Has(Isa::kAvx512), threads, FmaAvx512,
            kLoops * kInstructions * 32, false);
  PrintPeak("dpbf16_gflop_s", Has(Isa::kAvx512Bf16), threads, DotBf16, kLoops * kInstructions * 64,
            false);
  PrintPeak("amx_bf16_gflop_s", Has(Isa::kAmx), threads, TileBf16,
            kTileLoops * kTileInstructions * 16 * 16 * 64, true);
#else
  Print("read_gb_s", true, MemoryRate(threads), true);
#endif
  std::printf("}\n");
  return 0;
}

}  // namespace
}  // namespace switchyard

int main(int argc, char** argv) { return switchyard::Run(argc, argv); }
