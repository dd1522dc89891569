#include "tests/support/simt/cudart.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <vector>

namespace simt {

struct Event {
  Stream* stream = nullptr;
  uint64_t at = 0;  // of the stream's work, done when so much of it is
};

struct Graph {
  std::vector<std::function<void()>> work;
};

struct Stream {
  std::deque<std::function<void()>> waiting;
  uint64_t put = 0, done = 0;
  Graph* recording = nullptr;
};

namespace {

std::recursive_mutex mutex;  // of everything; work waits for events of other streams
std::set<Stream*> streams;
std::map<void*, size_t> device_memory;

size_t FromEnvironment(const char* name, size_t otherwise) {
  const char* text = std::getenv(name);
  return text == nullptr ? otherwise : std::strtoull(text, nullptr, 10);
}

size_t MemoryBytes() { return FromEnvironment("SIMT_MEMORY_BYTES", size_t{1} << 30); }

size_t Taken() {
  size_t bytes = 0;
  for (const auto& [at, size] : device_memory) bytes += size;
  return bytes;
}

void DoUntil(Stream& stream, uint64_t at) {
  while (stream.done < at) {
    const std::function<void()> work = std::move(stream.waiting.front());
    stream.waiting.pop_front();
    work();
    ++stream.done;
  }
}

}  // namespace

void Enqueue(Stream* stream, std::function<void()> work) {
  const std::lock_guard lock(mutex);
  if (stream == nullptr) {  // the default stream: at once, after everything
    for (Stream* s : streams) DoUntil(*s, s->put);
    work();
    return;
  }
  if (stream->recording != nullptr) {
    stream->recording->work.push_back(std::move(work));
    return;
  }
  stream->waiting.push_back(std::move(work));
  ++stream->put;
}

}  // namespace simt

using simt::mutex;

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorInsufficientDriver:
      return "CUDA driver version is insufficient for CUDA runtime version";
    case cudaErrorNoDevice:
      return "no CUDA-capable device is detected";
    case cudaErrorInvalidDevice:
      return "invalid device ordinal";
    case cudaErrorLaunchFailure:
      return "unspecified launch failure";
    default:
      return "invalid argument";
  }
}
cudaError_t cudaGetLastError() { return cudaSuccess; }
cudaError_t cudaDriverGetVersion(int* version) {
  *version = simt::FromEnvironment("SIMT_DEVICES", 1) == 0 ? 0 : 13000;
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = 13000;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceCount(int* count) {
  *count = static_cast<int>(simt::FromEnvironment("SIMT_DEVICES", 1));
  return *count == 0 ? cudaErrorInsufficientDriver : cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
  int count = 0;
  cudaGetDeviceCount(&count);
  return device >= 0 && device < count ? cudaSuccess : cudaErrorInvalidDevice;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* out, int device) {
  if (cudaSetDevice(device) != cudaSuccess) return cudaErrorInvalidDevice;
  *out = {};
  std::snprintf(out->name, sizeof(out->name), "emulated device");
  out->totalGlobalMem = simt::MemoryBytes();
  out->sharedMemPerBlockOptin = 227 * 1024;
  out->major = static_cast<int>(simt::FromEnvironment("SIMT_MAJOR", 8));
  out->multiProcessorCount = 4;
  out->l2CacheSize = 1 << 20;
  return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  const std::lock_guard lock(mutex);
  *total = simt::MemoryBytes();
  *free = *total - std::min(*total, simt::Taken());
  return cudaSuccess;
}

cudaError_t cudaMalloc(void** out, size_t bytes) {
  const std::lock_guard lock(mutex);
  if (simt::Taken() + bytes > simt::MemoryBytes()) return cudaErrorMemoryAllocation;
  *out = std::aligned_alloc(1024, (bytes + 1023) / 1024 * 1024);
  std::memset(*out, 0xff, bytes);  // no numbers
  simt::device_memory.emplace(*out, bytes);
  return cudaSuccess;
}
cudaError_t cudaFree(void* memory) {
  const std::lock_guard lock(mutex);
  cudaDeviceSynchronize();
  if (memory != nullptr && simt::device_memory.erase(memory) == 0) return cudaErrorInvalidValue;
  std::free(memory);
  return cudaSuccess;
}
cudaError_t cudaHostAlloc(void** out, size_t bytes, unsigned) {
  *out = std::aligned_alloc(1024, (bytes + 1023) / 1024 * 1024);
  return *out == nullptr ? cudaErrorMemoryAllocation : cudaSuccess;
}
cudaError_t cudaFreeHost(void* memory) {
  cudaDeviceSynchronize();
  std::free(memory);
  return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* out, unsigned) {
  const std::lock_guard lock(mutex);
  *out = new simt::Stream;
  simt::streams.insert(*out);
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  const std::lock_guard lock(mutex);
  cudaStreamSynchronize(stream);
  simt::streams.erase(stream);
  delete stream;
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  const std::lock_guard lock(mutex);
  if (stream == nullptr) return cudaDeviceSynchronize();
  static size_t waits = 0;
  if (++waits > simt::FromEnvironment("SIMT_LOST_AFTER", SIZE_MAX)) return cudaErrorLaunchFailure;
  simt::DoUntil(*stream, stream->put);
  return cudaSuccess;
}
cudaError_t cudaStreamQuery(cudaStream_t stream) {
  const std::lock_guard lock(mutex);
  if (stream->done < stream->put) simt::DoUntil(*stream, stream->done + 1);
  return stream->done < stream->put ? cudaErrorNotReady : cudaStreamSynchronize(stream);
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  const std::lock_guard lock(mutex);
  simt::Enqueue(stream, [of = event->stream, at = event->at] {
    if (of != nullptr && simt::streams.contains(of)) simt::DoUntil(*of, at);
  });
  return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize() {
  const std::lock_guard lock(mutex);
  for (simt::Stream* s : simt::streams) simt::DoUntil(*s, s->put);
  return cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* out, unsigned) {
  *out = new simt::Event;
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  const std::lock_guard lock(mutex);
  event->stream = stream;
  event->at = stream->put;
  return cudaSuccess;
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
  const std::lock_guard lock(mutex);
  simt::Stream* const of = event->stream;
  if (of == nullptr || of->done >= event->at) return cudaSuccess;
  simt::DoUntil(*of, of->done + 1);
  return cudaErrorNotReady;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  const std::lock_guard lock(mutex);
  if (event->stream != nullptr) simt::DoUntil(*event->stream, event->at);
  return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind,
                            cudaStream_t stream) {
  simt::Enqueue(stream, [=] { std::memcpy(to, from, bytes); });
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream) {
  simt::Enqueue(stream, [=] { std::memset(to, value, bytes); });
  return cudaSuccess;
}
cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int value) {
  return value <= 227 * 1024 ? cudaSuccess : cudaErrorInvalidValue;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  const std::lock_guard lock(mutex);
  if (stream->recording != nullptr) return cudaErrorInvalidValue;
  stream->recording = new simt::Graph;
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* out) {
  const std::lock_guard lock(mutex);
  *out = std::exchange(stream->recording, nullptr);
  return *out == nullptr ? cudaErrorInvalidValue : cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* out, cudaGraph_t graph, unsigned long long) {
  *out = new simt::Graph(*graph);
  return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream) {
  simt::Enqueue(stream, [work = graph->work] {
    for (const auto& step : work) step();
  });
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph) {
  delete graph;
  return cudaSuccess;
}
