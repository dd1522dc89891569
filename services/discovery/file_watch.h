// A document in a file, or in a mounted ConfigMap, where a symlink on the way to it is exchanged.
//
// It is looked at a few times a second instead of watched through inotify: a look is one stat of
// about a microsecond, and sees what inotify does not or only with a watch on each link of the
// path: exchanged symlinks, network file systems, a directory that comes later.
#pragma once

#include <sys/stat.h>

#include <cstdint>
#include <optional>
#include <string>
#include <thread>
#include <tuple>

#include "absl/status/statusor.h"
#include "services/discovery/document_source.h"
#include "services/discovery/stopper.h"

namespace switchyard::discovery {

struct FileWatchOptions {
  std::string path;
  uint64_t max_bytes = 16u << 20;
  absl::Duration every = absl::Milliseconds(200);  // infinite: only Look looks
};

class FileWatch final : public DocumentSource {
 public:
  FileWatch(FileWatchOptions options, TakeDocument take);
  ~FileWatch() override;

  const std::string& name() const override { return taker_.name(); }
  SourceHealth health() const override { return taker_.health(); }

  // A look as the thread does it. What has changed is read once two looks saw the same, so that
  // nothing is taken that is still being written.
  void Look();

 private:
  // Device, inode, size and time of the last change: another whenever the contents may be.
  using Trace = std::tuple<dev_t, ino_t, off_t, int64_t, int64_t>;
  absl::StatusOr<Trace> TraceOf() const;

  const FileWatchOptions options_;
  DocumentTaker taker_;
  absl::Mutex look_mutex_;
  std::optional<Trace> seen_ ABSL_GUARDED_BY(look_mutex_);  // by the last look
  std::optional<Trace> read_ ABSL_GUARDED_BY(look_mutex_);  // what was offered
  Stopper stopper_;
  std::thread thread_;
};

}  // namespace switchyard::discovery
