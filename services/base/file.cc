#include "services/base/file.h"

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "services/base/status.h"

namespace switchyard {

absl::StatusOr<std::string> ReadFile(const std::string& path, uint64_t max_bytes) {
  std::error_code error;
  if (std::filesystem::is_directory(path, error)) {
    return InvalidArgument("{}: is a directory, expected a file", path);
  }
  std::ifstream in(path, std::ios::binary);
  if (!in) return NotFound("{}: {}", path, std::strerror(errno));
  std::string out;
  char chunk[65536];
  while (in.read(chunk, sizeof chunk) || in.gcount() > 0) {
    out.append(chunk, static_cast<size_t>(in.gcount()));
    if (out.size() > max_bytes) {
      return InvalidArgument("{}: larger than the limit of {} bytes", path, max_bytes);
    }
  }
  if (in.bad()) return DataLoss("{}: read failed: {}", path, std::strerror(errno));
  return out;
}

absl::Status WriteFile(const std::string& path, std::string_view text) {
  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  out << text;
  out.close();
  if (out) return absl::OkStatus();
  return Unavailable("{}: cannot be written: {}", path, std::strerror(errno));
}

bool FileExists(const std::string& path) {
  std::error_code error;
  return std::filesystem::exists(path, error);
}

}  // namespace switchyard
