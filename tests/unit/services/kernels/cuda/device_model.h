// A checkpoint's backbone as the CUDA plugin takes it (backbone_abi.h), on a device.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <span>
#include <vector>

#include "router/device/pack_backbone.h"
#include "services/model/kv_layout.h"

namespace switchyard::test {

class DeviceModel {
 public:
  static constexpr int kPositions = 512, kBlocks = 64;

  DeviceModel(const ModelSpec& spec, const router::RouterWeights& weights)
      : spec_(spec), kv_(KvLayoutOf(spec)) {
    EXPECT_EQ(api_.open(0, &context_, &error_), SY_CUDA_OK) << error_.text;
    // NaNs: what is read before it is written shows.
    const auto bytes = static_cast<size_t>(router::DeviceKvBytes(spec, kBlocks));
    cache_ = static_cast<std::byte*>(Put(std::vector<std::byte>(bytes, std::byte{0xff})));
    const router::PackedBackbone packed = Pack(weights);
    EXPECT_EQ(
        backbone_api_.create(context_, &packed.spec, packed.layers.data(), &backbone_, &error_),
        SY_CUDA_OK)
        << error_.text;
  }
  ~DeviceModel() {
    if (backbone_ != nullptr) backbone_api_.destroy(backbone_);
    for (void* block : blocks_) api_.release(context_, SY_CUDA_DEVICE, block);
    api_.close(context_);
  }
  DeviceModel(const DeviceModel&) = delete;
  DeviceModel& operator=(const DeviceModel&) = delete;

  const ModelSpec& spec() const { return spec_; }
  const KvLayout& kv() const { return kv_; }
  SyCudaContext* context() const { return context_; }
  SyCudaBackbone* backbone() const { return backbone_; }
  const SyCudaApi& api() const { return api_; }
  const SyCudaBackboneApi& backbone_api() const { return backbone_api_; }
  SyCudaError& error() { return error_; }
  void* Put(std::span<const std::byte> bytes) {
    void* device = nullptr;
    EXPECT_EQ(api_.allocate(context_, SY_CUDA_DEVICE, std::max<size_t>(bytes.size(), 1), &device,
                            &error_),
              SY_CUDA_OK)
        << error_.text;
    EXPECT_EQ(api_.upload(context_, device, bytes.data(), bytes.size(), &error_), SY_CUDA_OK);
    blocks_.push_back(device);
    return device;
  }

  // Once more, to make others of it.
  router::PackedBackbone Pack(const router::RouterWeights& weights) {
    auto packed = router::PackBackbone(
        spec_, weights,
        {.put = [this](std::span<const std::byte> bytes) { return Put(bytes); },
         .positions = kPositions});
    EXPECT_TRUE(packed.ok()) << packed.status();
    router::PlaceCache(spec_, cache_, kBlocks, &*packed);
    return *packed;
  }

 private:
  const ModelSpec& spec_;
  const KvLayout kv_;
  const SyCudaApi& api_ = *SyCudaPlugin(SY_CUDA_ABI_VERSION);
  const SyCudaBackboneApi& backbone_api_ = *SyCudaBackbonePlugin(SY_CUDA_BACKBONE_ABI_VERSION);
  SyCudaContext* context_ = nullptr;
  SyCudaBackbone* backbone_ = nullptr;
  SyCudaError error_ = {};
  std::vector<void*> blocks_;
  std::byte* cache_ = nullptr;
};

}  // namespace switchyard::test
