// Holds a CUDA plugin against plain loops in float64, through its C tables alone: check PLUGIN
// [--quick] [--device N] [--only PART]. tools/bench/gpu --test builds and runs it.
#include "tools/bench/gpu_bench/check.h"

#include <dlfcn.h>

#include <cmath>
#include <cstdlib>

namespace switchyard::gpu_bench {

Check::Check(const SyCudaApi& api, const SyCudaBackboneApi& backbone, SyCudaContext* context,
             const Options& options)
    : api_(api), backbone_(backbone), context_(context), options_(options) {
  Ok(api_.describe(context_, &device_, &error_), "describe");
}

bool Check::Begin(const std::string& name) {
  if (lost_ || name.find(options_.only) == std::string::npos) return false;
  name_ = name;
  notes_.clear();
  ++cases_;
  failures_before_ = failures_;
  std::printf("%s: ", name.c_str());
  std::fflush(stdout);  // so that a crash has its case's name
  return true;
}

void Check::Expect(bool true_or_failed, const char* format, ...) {
  if (true_or_failed) return;
  ++failures_;
  char text[512];
  va_list args;
  va_start(args, format);
  std::vsnprintf(text, sizeof(text), format, args);
  va_end(args);
  if (failures_ - failures_before_ <= 8) notes_ += std::string("\n  ") + text;
}

void Check::Near(const Distance& distance, double limit, const char* what) {
  const double found = distance.relative();
  char text[128];
  std::snprintf(text, sizeof(text), " %s%.1e", *what == 0 ? "" : (std::string(what) + " ").c_str(),
                found);
  notes_ += text;
  Expect(found <= limit, "%s: relative distance %.2e, at most %.0e was expected", what, found,
         limit);
}

bool Check::Ok(int status, const char* call) {
  Expect(status == SY_CUDA_OK, "%s: %s", call, error_.text);
  lost_ = lost_ || status == SY_CUDA_LOST;
  return status == SY_CUDA_OK;
}

void Check::End() {
  std::printf("%s%s\n", failures_ == failures_before_ ? "ok" : "FAILED", notes_.c_str());
  std::fflush(stdout);
}

void* Check::Put(const void* bytes, size_t size) {
  void *pinned = nullptr, *device = nullptr;
  if (!Ok(api_.allocate(context_, SY_CUDA_DEVICE, size, &device, &error_), "allocate")) {
    return nullptr;
  }
  if (Ok(api_.allocate(context_, SY_CUDA_PINNED, size, &pinned, &error_), "allocate")) {
    if (bytes != nullptr) std::memcpy(pinned, bytes, size);
    Ok(api_.upload(context_, device, pinned, size, &error_), "upload");
    api_.release(context_, SY_CUDA_PINNED, pinned);
  }
  return device;
}

double Distance::relative() const {
  return length == 0 ? (apart == 0 ? 0 : INFINITY) : std::sqrt(apart / length);
}

namespace {

int Usage() {
  std::fprintf(stderr, "usage: gpu_check PLUGIN [--quick] [--device N] [--only PART]\n");
  return 2;
}

int Run(const SyCudaApi& api, const SyCudaBackboneApi& backbone, int device,
        const Options& options) {
  SyCudaContext* context = nullptr;
  SyCudaError error = {};
  if (api.open(device, &context, &error) != SY_CUDA_OK) {
    std::fprintf(stderr, "gpu_check: %s\n", error.text);
    return 3;
  }
  Check check(api, backbone, context, options);
  const SyCudaDevice& d = check.device();
  std::printf("%s, compute capability %d.%d, %s, driver %d.%d\n", d.name, d.major, d.minor,
              d.arithmetic, d.driver_version / 1000, d.driver_version % 1000 / 10);
  CheckFfn(check);
  CheckBackbone(check);
  const bool lost = check.lost();
  if (lost) {
    std::printf("the device was lost: what follows was not tried\n");
  } else {
    api.close(context);
  }
  std::printf("%d cases, %d findings\n", check.cases(), check.failures());
  if (check.cases() == 0 && !lost) {
    std::fprintf(stderr, "gpu_check: no case is named like \"%s\"\n", options.only.c_str());
    return 2;
  }
  return check.failures() == 0 ? 0 : 1;
}

int Main(int count, char** words) {
  Options options;
  int device = 0;
  const char* path = nullptr;
  for (int i = 1; i < count; ++i) {
    const std::string word = words[i];
    const bool more = i + 1 < count;
    if (word == "--quick") {
      options.quick = true;
    } else if (word == "--device" && more) {
      device = std::atoi(words[++i]);
    } else if (word == "--only" && more) {
      options.only = words[++i];
    } else if (word[0] != '-' && path == nullptr) {
      path = words[i];
    } else {
      return Usage();
    }
  }
  if (path == nullptr) return Usage();
  void* const plugin = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (plugin == nullptr) {
    std::fprintf(stderr, "gpu_check: %s\n", dlerror());
    return 3;
  }
  const auto api = reinterpret_cast<SyCudaPluginFunction>(dlsym(plugin, "SyCudaPlugin"));
  const auto backbone =
      reinterpret_cast<SyCudaBackbonePluginFunction>(dlsym(plugin, "SyCudaBackbonePlugin"));
  if (api == nullptr || backbone == nullptr || api(SY_CUDA_ABI_VERSION) == nullptr ||
      backbone(SY_CUDA_BACKBONE_ABI_VERSION) == nullptr) {
    std::fprintf(stderr, "gpu_check: %s is no plugin of this version\n", path);
    return 3;
  }
  return Run(*api(SY_CUDA_ABI_VERSION), *backbone(SY_CUDA_BACKBONE_ABI_VERSION), device, options);
}

}  // namespace
}  // namespace switchyard::gpu_bench

int main(int count, char** words) { return switchyard::gpu_bench::Main(count, words); }
