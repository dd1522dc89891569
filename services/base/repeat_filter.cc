#include "services/base/repeat_filter.h"

namespace switchyard::log {

bool RepeatFilter::Passes(const std::string& key, const std::string& line, absl::Time now) {
  absl::MutexLock lock(&mutex_);
  const auto at = last_.find(key);
  if (at != last_.end() && at->second.line == line && now - at->second.passed < period_) {
    return false;
  }
  if (at == last_.end() && last_.size() >= kKeysMax) last_.clear();
  last_[key] = {line, now};
  return true;
}

}  // namespace switchyard::log
