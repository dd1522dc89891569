// Weights in memory whose reading a test watches, holds up or lets fail.
#pragma once

#include <gtest/gtest.h>

#include <map>
#include <set>
#include <string>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "services/base/status.h"
#include "services/model/tensor_names.h"
#include "tests/support/moe_fixture.h"

namespace switchyard::testing {

class FaultySource : public MemorySource {
 public:
  FaultySource(const ModelSpec& spec, uint32_t seed) : MemorySource(spec, seed), spec_(spec) {}

  absl::Status Map(const std::vector<checkpoint::TensorRange>& ranges) override {
    absl::MutexLock lock(&mutex_);
    return MemorySource::Map(ranges);
  }
  absl::StatusOr<checkpoint::MappedTensor> Get(
      const checkpoint::TensorRange& range) const override {
    absl::MutexLock lock(&mutex_);
    return MemorySource::Get(range);
  }
  absl::Status Populate(const checkpoint::TensorRange& range) const override {
    absl::MutexLock lock(&mutex_);
    const auto may_go_on = [this] {
      mutex_.AssertHeld();
      return !held_up_;
    };
    ++waiting_;
    mutex_.Await(absl::Condition(&may_go_on));
    --waiting_;
    ++populated_[range.name];
    in_memory_.insert(range.name);
    if (bad_.contains(range.name)) return DataLoss("{} cannot be read", range.name);
    return absl::OkStatus();
  }
  void Evict(const checkpoint::TensorRange& range) const override {
    absl::MutexLock lock(&mutex_);
    in_memory_.erase(range.name);
  }

  void HoldUp(bool held_up) {
    absl::MutexLock lock(&mutex_);
    held_up_ = held_up;
  }
  // Until somebody reads and is held up.
  void AwaitReader() const {
    absl::MutexLock lock(&mutex_);
    const auto somebody = [this] {
      mutex_.AssertHeld();
      return waiting_ > 0;
    };
    EXPECT_TRUE(mutex_.AwaitWithTimeout(absl::Condition(&somebody), absl::Seconds(20)));
  }
  // Whether the expert's first tensor can be read.
  void SetBad(int layer, int expert, bool bad) {
    absl::MutexLock lock(&mutex_);
    bad ? (void)bad_.insert(NameOf(layer, expert)) : (void)bad_.erase(NameOf(layer, expert));
  }
  int populated(int layer, int expert) const {
    absl::MutexLock lock(&mutex_);
    const auto it = populated_.find(NameOf(layer, expert));
    return it == populated_.end() ? 0 : it->second;
  }
  bool in_memory(int layer, int expert) const {
    absl::MutexLock lock(&mutex_);
    return in_memory_.contains(NameOf(layer, expert));
  }
  size_t experts_in_memory() const {
    absl::MutexLock lock(&mutex_);
    return in_memory_.size() / 3;
  }

 private:
  std::string NameOf(int layer, int expert) const {
    return ExpertTensorsOf(spec_, layer, expert).gate.tensor.name;
  }

  const ModelSpec spec_;
  mutable absl::Mutex mutex_;
  bool held_up_ = false;
  mutable int waiting_ = 0;
  std::set<std::string> bad_;
  mutable std::map<std::string, int> populated_;
  mutable std::set<std::string> in_memory_;
};

}  // namespace switchyard::testing
