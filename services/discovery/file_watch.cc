#include "services/discovery/file_watch.h"

#include <cerrno>
#include <cstring>
#include <utility>

#include "services/base/file.h"
#include "services/base/status.h"

namespace switchyard::discovery {

FileWatch::FileWatch(FileWatchOptions options, TakeDocument take)
    : options_(std::move(options)), taker_(options_.path, std::move(take)) {
  if (options_.every == absl::InfiniteDuration()) return;
  thread_ = std::thread([this] {
    do {
      Look();
    } while (stopper_.Pause(options_.every));
  });
}

FileWatch::~FileWatch() {
  stopper_.Stop();
  if (thread_.joinable()) thread_.join();
}

absl::StatusOr<FileWatch::Trace> FileWatch::TraceOf() const {
  struct stat s = {};
  if (::stat(options_.path.c_str(), &s) != 0) {
    return NotFound("cannot be read: {}", std::strerror(errno));
  }
  return Trace{s.st_dev, s.st_ino, s.st_size, s.st_mtim.tv_sec, s.st_mtim.tv_nsec};
}

void FileWatch::Look() {
  absl::MutexLock lock(&look_mutex_);
  const absl::StatusOr<Trace> now = TraceOf();
  if (!now.ok()) {
    // Between the deletion of a file and its successor there is none: said when it lasts.
    if (!seen_) taker_.Fail(now.status());
    seen_.reset();
    read_.reset();
    return;
  }
  const bool settled = seen_ == *now;
  seen_ = *now;
  if (!settled || read_ == *now) return;
  if (static_cast<uint64_t>(std::get<2>(*now)) > options_.max_bytes) {
    read_ = *now;
    return taker_.Fail(
        InvalidArgument("longer than the {} bytes that are read", options_.max_bytes));
  }
  const absl::StatusOr<std::string> text = ReadFile(options_.path, options_.max_bytes);
  const absl::StatusOr<Trace> after = TraceOf();
  if (!after.ok() || *after != *now) return;  // changed meanwhile: the next looks see to it
  read_ = *now;
  if (text.ok()) {
    taker_.Offer(*text);
  } else {
    taker_.Fail(text.status());
  }
}

}  // namespace switchyard::discovery
