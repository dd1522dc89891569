// What computes experts: this CPU, or a device (expert-worker/device).
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "expert-worker/compute/expert_ffn.h"
#include "services/expertwire/expert_link.h"
#include "services/expertwire/layout.h"

namespace switchyard::worker {

// A part that waits, and who asked.
struct Pending {
  expertwire::Call call;
  std::shared_ptr<expertwire::AnswerSink> sink;
  absl::Time arrived;
};

inline constexpr uint32_t kNoPair = ~uint32_t{0};

// What is known of one part while it is computed.
struct PartWork {
  expertwire::AnswerLayout layout;
  std::vector<uint32_t> pair;  // [row_index] -> pair, or kNoPair where it is not held
  // Entries of row_index by sum, each sum's by expert ascending: order[first[s], first[s + 1]). No
  // entries where an expert of the sum is not held: its row is of zeros.
  std::vector<uint32_t> first, order;
};

// Parts of one layer, of any number of routers. What it refers to is the caller's, who keeps it.
struct Batch {
  int32_t layer = 0;
  std::span<const Pending> parts;
  std::span<const PartWork> work;   // [parts]
  std::span<const int32_t> base;    // [parts]: first row of each among the rows of all
  std::span<const int32_t> gather;  // [pairs]: row
  std::span<const ExpertRun> runs;  // tile [0, pairs), by expert ascending
};

// One thread at a time. Of one batch at a time; several of a device overlap theirs.
class Backend {
 public:
  virtual ~Backend() = default;

  // Begins y[p] = FFN(x[gather[p]]), and of these each part's sums and rows, as its layout has
  // them, into the payload of its answer, where it has any. What a part gets does not depend on its
  // company. What `batch` and `answers` lead to stays until Finish.
  virtual void Start(const Batch& batch, std::span<expertwire::Answer> answers) = 0;
  // Whether Finish would not wait.
  virtual bool Done() { return true; }
  // Waits for the end. An error ends the batch without payloads: RESOURCE_EXHAUSTED where there is
  // no room for it, DATA_LOSS where the device is lost for good.
  virtual absl::Status Finish() = 0;
  // Scratch that a pair takes.
  virtual size_t bytes_a_pair() const = 0;
};

}  // namespace switchyard::worker
