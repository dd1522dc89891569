// Writes small .safetensors files and checkpoints, right and wrong ones, for the tests here.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "services/base/check.h"
#include "services/base/file.h"

namespace switchyard::checkpoint {

// A directory that is removed with its contents.
class TempDirectory {
 public:
  TempDirectory() {
    std::string name = (std::filesystem::temp_directory_path() / "sy-test-XXXXXX").string();
    SY_CHECK(mkdtemp(name.data()) != nullptr);
    path_ = name;
  }
  ~TempDirectory() { std::filesystem::remove_all(path_); }
  TempDirectory(const TempDirectory&) = delete;
  TempDirectory& operator=(const TempDirectory&) = delete;

  std::string path() const { return path_.string(); }
  std::string operator/(const std::string& name) const { return (path_ / name).string(); }

 private:
  std::filesystem::path path_;
};

inline void WriteFile(const std::string& path, const std::string& bytes) {
  SY_CHECK(switchyard::WriteFile(path, bytes).ok());
}

// A file of the header as given and `data` as its data section; the header is padded to 8 bytes as
// safetensors writes it.
inline std::string FileOf(std::string header, const std::string& data) {
  while (header.size() % 8 != 0) header += ' ';
  std::string out(8, '\0');
  for (size_t i = 0; i < 8; ++i) out[i] = static_cast<char>(header.size() >> (8 * i));
  return out + header + data;
}

// "name":{...} of a header.
inline std::string Entry(const std::string& name, const std::string& dtype,
                         const std::string& shape, uint64_t begin, uint64_t end) {
  return "\"" + name + "\":{\"dtype\":\"" + dtype + "\",\"shape\":" + shape +
         ",\"data_offsets\":[" + std::to_string(begin) + "," + std::to_string(end) + "]}";
}

}  // namespace switchyard::checkpoint
