// Keeps a line that comes again and again out of the log: one that is another than the last of its
// key passes at once, the same one once a period. Keys come from peers, so what is kept is bounded.
// Thread-safe.
#pragma once

#include <cstddef>
#include <string>
#include <unordered_map>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace switchyard::log {

class RepeatFilter {
 public:
  static constexpr size_t kKeysMax = 1024;  // then all is forgotten

  explicit RepeatFilter(absl::Duration period = absl::Minutes(1)) : period_(period) {}

  bool Passes(const std::string& key, const std::string& line, absl::Time now);

 private:
  struct Last {
    std::string line;
    absl::Time passed;
  };
  const absl::Duration period_;
  absl::Mutex mutex_;
  std::unordered_map<std::string, Last> last_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace switchyard::log
