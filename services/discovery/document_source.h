// Where a document comes from that may change while we run, such as a placement: a file
// (FileWatch) or a key of etcd (DocumentWatch). Whoever uses it takes each version through a
// callback; the last good one stays in force, whatever becomes of the source.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace switchyard::discovery {

struct SourceHealth {
  absl::Status status;                        // OK: what the source has now is in force
  uint64_t taken = 0;                         // versions that were
  uint64_t refused = 0;                       // versions that were not
  absl::Time contact = absl::InfinitePast();  // with the source, the last
};

// Takes a version; an error says why it cannot be used. Called one at a time.
using TakeDocument = std::function<absl::Status(const std::string& text)>;

// Thread-safe. Its end waits for a callback that runs, and none comes afterwards.
class DocumentSource {
 public:
  virtual ~DocumentSource() = default;
  virtual const std::string& name() const = 0;  // for errors: the path, or "etcd: KEY"
  virtual SourceHealth health() const = 0;
};

// What sources have in common: a version is handed on once, an error is logged once. Thread-safe,
// but for Offer, which one thread at a time may call.
class DocumentTaker {
 public:
  DocumentTaker(std::string name, TakeDocument take)
      : name_(std::move(name)), take_(std::move(take)) {}

  void Offer(const std::string& text);
  // The source cannot be read.
  void Fail(absl::Status why);

  const std::string& name() const { return name_; }
  SourceHealth health() const;

 private:
  void SetStatus(absl::Status status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const std::string name_;
  const TakeDocument take_;
  std::optional<std::string> last_;  // that was offered
  absl::Status verdict_;             // on it

  mutable absl::Mutex mutex_;
  SourceHealth health_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace switchyard::discovery
