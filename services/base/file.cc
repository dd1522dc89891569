#include "services/base/file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "services/base/status.h"
#include "services/base/unique_fd.h"

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

absl::Status WriteAll(int fd, const std::string& path, std::string_view bytes) {
  for (size_t done = 0; done < bytes.size();) {
    const ssize_t wrote = ::write(fd, bytes.data() + done, bytes.size() - done);
    if (wrote < 0 && errno == EINTR) continue;
    if (wrote < 0) {
      return Unavailable("{}: cannot be written: {}; {} of {} bytes are missing", path,
                         std::strerror(errno), bytes.size() - done, bytes.size());
    }
    done += static_cast<size_t>(wrote);
  }
  return absl::OkStatus();
}

absl::Status WriteFile(const std::string& path, std::string_view text) {
  std::error_code error;
  const bool special =
      std::filesystem::exists(path, error) &&
      (std::filesystem::is_symlink(path, error) || !std::filesystem::is_regular_file(path, error));
  const std::string to = special ? path : fmt::format("{}.{}.new", path, ::getpid());
  const UniqueFd fd(::open(to.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666));
  if (fd.get() < 0) return Unavailable("{}: cannot be written: {}", path, std::strerror(errno));
  absl::Status status = WriteAll(fd.get(), path, text);
  if (special) return status;
  if (status.ok() && ::rename(to.c_str(), path.c_str()) != 0) {
    status = Unavailable("{}: cannot be written: {}", path, std::strerror(errno));
  }
  if (!status.ok()) ::unlink(to.c_str());
  return status;
}

bool FileExists(const std::string& path) {
  std::error_code error;
  return std::filesystem::exists(path, error);
}

}  // namespace switchyard
