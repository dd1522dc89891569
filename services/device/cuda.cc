#include "services/device/cuda.h"

#include <dlfcn.h>

#include <filesystem>
#include <utility>
#include <vector>

#include "services/base/status.h"

namespace switchyard::device {
namespace {

constexpr const char* kPlugin = "libswitchyard_cuda.so";

std::vector<std::string> Candidates(const std::string& plugin) {
  if (!plugin.empty()) return {plugin};
  std::vector<std::string> paths;
  std::error_code error;
  const std::filesystem::path program = std::filesystem::read_symlink("/proc/self/exe", error);
  if (!error) {
    const std::filesystem::path bin = program.parent_path(), lib = bin.parent_path() / "lib";
    for (const auto& folder : {bin, lib, lib / "switchyard"}) {
      if (std::filesystem::exists(folder / kPlugin, error)) paths.push_back(folder / kPlugin);
    }
  }
  paths.push_back(kPlugin);
  return paths;
}

absl::StatusOr<void*> LoadLibrary(const std::string& plugin) {
  std::string why;
  for (const std::string& path : Candidates(plugin)) {
    if (void* library = ::dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL)) return library;
    const char* said = ::dlerror();
    why = said == nullptr ? "unknown" : said;
  }
  return FailedPrecondition(
      "the CUDA plugin cannot be loaded: {}; it is built where CMake finds nvcc "
      "and lies in lib beside bin, or --cuda-plugin names it",
      why);
}

absl::Status OtherVersion(const std::string& plugin) {
  return FailedPrecondition(
      "the CUDA plugin {} is of another version than this program; "
      "install those that were built together",
      plugin);
}

}  // namespace

absl::Status ToStatus(int code, const SyCudaError& error, std::string_view what) {
  const std::string text = what.empty() ? error.text : fmt::format("{}: {}", what, error.text);
  switch (code) {
    case SY_CUDA_OK:
      return absl::OkStatus();
    case SY_CUDA_NO_DRIVER:
    case SY_CUDA_NO_DEVICE:
    case SY_CUDA_BAD_DEVICE:
      return absl::FailedPreconditionError(text);
    case SY_CUDA_NO_MEMORY:
      return absl::ResourceExhaustedError(text);
    case SY_CUDA_LOST:
      return absl::DataLossError(text);
    default:
      return absl::InternalError(text);
  }
}

absl::StatusOr<std::shared_ptr<Cuda>> Cuda::Open(const std::string& plugin, int index) {
  SY_ASSIGN_OR_RETURN(void* const library, LoadLibrary(plugin));
  const auto get = reinterpret_cast<SyCudaPluginFunction>(::dlsym(library, "SyCudaPlugin"));
  const SyCudaApi* const api = get == nullptr ? nullptr : get(SY_CUDA_ABI_VERSION);
  if (api == nullptr) return OtherVersion(plugin.empty() ? kPlugin : plugin);
  std::shared_ptr<Cuda> cuda(new Cuda(library, api));
  SyCudaError error = {};
  SY_RETURN_IF_ERROR(ToStatus(api->open(index, &cuda->context_, &error), error));
  SY_RETURN_IF_ERROR(ToStatus(api->describe(cuda->context_, &cuda->about_, &error), error));
  return cuda;
}

Cuda::~Cuda() {
  if (context_ != nullptr) api_->close(context_);
}

absl::StatusOr<const SyCudaBackboneApi*> Cuda::backbone_api() const {
  const auto get =
      reinterpret_cast<SyCudaBackbonePluginFunction>(::dlsym(library_, "SyCudaBackbonePlugin"));
  const SyCudaBackboneApi* const api = get == nullptr ? nullptr : get(SY_CUDA_BACKBONE_ABI_VERSION);
  if (api == nullptr) return OtherVersion(kPlugin);
  return api;
}

std::string Cuda::name() const { return fmt::format("{} (cuda:{})", about_.name, about_.index); }

absl::StatusOr<uint64_t> Cuda::FreeBytes() const {
  SyCudaDevice now;
  SyCudaError error = {};
  SY_RETURN_IF_ERROR(ToStatus(api_->describe(context_, &now, &error), error));
  return now.free_bytes;
}

absl::StatusOr<CudaBlock> CudaBlock::Allocate(std::shared_ptr<const Cuda> cuda, SyCudaMemory memory,
                                              size_t bytes) {
  void* block = nullptr;
  SyCudaError error = {};
  const int code = cuda->api().allocate(cuda->context(), memory, bytes, &block, &error);
  SY_RETURN_IF_ERROR(ToStatus(code, error, fmt::format("{} bytes", bytes)));
  CudaBlock out;
  out.block_ = {static_cast<std::byte*>(block), ReleaseCudaBlock{std::move(cuda), memory}};
  return out;
}

void ReleaseCudaBlock::operator()(std::byte* block) const {
  cuda->api().release(cuda->context(), memory, block);
}

}  // namespace switchyard::device
