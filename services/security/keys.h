// The API keys of a listener: a file of one key a line, compared in constant time. Keys never
// appear in logs or errors.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace switchyard::security {

// Immutable, hence thread-safe.
class KeySet {
 public:
  // Blank lines and lines that start with # are skipped. INVALID_ARGUMENT names the file and line
  // of a key with blanks or control characters in it, and a file without keys. Logs a warning if
  // others than the owner may read the file.
  static absl::StatusOr<KeySet> Load(const std::string& path);

  // In time that depends on the lengths of the keys alone.
  bool Contains(std::string_view key) const;
  size_t size() const { return keys_.size(); }

 private:
  std::vector<std::string> keys_;
};

// Whether two strings are equal, in time that depends on their lengths alone.
bool ConstantTimeEqual(std::string_view a, std::string_view b);

}  // namespace switchyard::security
