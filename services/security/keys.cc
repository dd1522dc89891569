#include "services/security/keys.h"

#include <sys/stat.h>

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/str_split.h"
#include "services/base/file.h"
#include "services/base/logging.h"
#include "services/base/status.h"

namespace switchyard::security {
namespace {

constexpr uint64_t kKeyFileBytesMax = 1 << 20;

void WarnOfOthers(const std::string& path) {
  struct stat info = {};
  if (::stat(path.c_str(), &info) != 0 || (info.st_mode & (S_IRWXG | S_IRWXO)) == 0) return;
  log::Warning("{}: others than its owner may use this key file (mode {:o}); chmod 600 mends it",
               path, info.st_mode & 0777);
}

}  // namespace

bool ConstantTimeEqual(std::string_view a, std::string_view b) {
  // volatile: the compiler must not turn the loop into one that stops early.
  volatile unsigned char different = a.size() == b.size() ? 0 : 1;
  const size_t n = std::min(a.size(), b.size());
  for (size_t i = 0; i < n; ++i) {
    different = different | static_cast<unsigned char>(a[i] ^ b[i]);
  }
  return different == 0;
}

absl::StatusOr<KeySet> KeySet::Load(const std::string& path) {
  SY_ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kKeyFileBytesMax));
  KeySet set;
  int number = 0;
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    ++number;
    line = absl::StripAsciiWhitespace(line);
    if (line.empty() || line[0] == '#') continue;
    if (!std::all_of(line.begin(), line.end(), absl::ascii_isgraph)) {
      return InvalidArgument("{}: line {}: a key holds printable ASCII without blanks only", path,
                             number);
    }
    set.keys_.emplace_back(line);
  }
  if (set.keys_.empty()) return InvalidArgument("{}: holds no key; give one a line", path);
  WarnOfOthers(path);
  return set;
}

bool KeySet::Contains(std::string_view key) const {
  bool found = false;
  for (const std::string& known : keys_) found = ConstantTimeEqual(key, known) | found;
  return found;
}

}  // namespace switchyard::security
