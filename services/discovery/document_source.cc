#include "services/discovery/document_source.h"

#include <utility>

#include "services/base/clock.h"
#include "services/base/logging.h"
#include "services/base/text.h"

namespace switchyard::discovery {

void DocumentTaker::Offer(const std::string& text) {
  const bool is_new = text != last_;
  if (is_new) {
    last_ = text;
    verdict_ = take_(text);
  }
  absl::MutexLock lock(&mutex_);
  health_.contact = SteadyNow();
  if (is_new) ++(verdict_.ok() ? health_.taken : health_.refused);
  SetStatus(verdict_);
}

void DocumentTaker::Fail(absl::Status why) {
  absl::MutexLock lock(&mutex_);
  SetStatus(std::move(why));
}

void DocumentTaker::SetStatus(absl::Status status) {
  if (status == health_.status) return;
  if (status.ok()) {
    log::Info("{}: taken", name_);
  } else if (absl::IsNotFound(status) && health_.taken == 0) {
    log::Info("{}: {} yet", name_, ToStd(status.message()));
  } else {
    log::Error("{}: {}; {}", name_, ToStd(status.message()),
               health_.taken > 0 ? "the last good version is still followed" : "there is none yet");
  }
  health_.status = std::move(status);
}

SourceHealth DocumentTaker::health() const {
  absl::MutexLock lock(&mutex_);
  return health_;
}

}  // namespace switchyard::discovery
