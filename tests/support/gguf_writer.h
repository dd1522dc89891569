// Writes small GGUF files, right and wrong ones, byte by byte.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace switchyard::test {

class GgufWriter {
 public:
  explicit GgufWriter(uint32_t version = 3) : version_(version) {}

  template <typename T>
  static std::string Raw(T value) {
    std::string out(sizeof value, '\0');
    std::memcpy(out.data(), &value, sizeof value);
    return out;
  }
  static std::string Text(std::string_view text) {
    return Raw<uint64_t>(text.size()) + std::string(text);
  }

  // A key of any value type and its bytes.
  GgufWriter& Key(std::string_view key, uint32_t type, const std::string& value) {
    keys_ += Text(key) + Raw(type) + value;
    ++key_count_;
    return *this;
  }
  GgufWriter& U32(std::string_view key, uint32_t value) { return Key(key, 4, Raw(value)); }
  GgufWriter& F32(std::string_view key, float value) { return Key(key, 6, Raw(value)); }
  GgufWriter& Bool(std::string_view key, bool value) { return Key(key, 7, Raw<uint8_t>(value)); }
  GgufWriter& String(std::string_view key, std::string_view value) {
    return Key(key, 8, Text(value));
  }
  GgufWriter& Strings(std::string_view key, const std::vector<std::string>& values) {
    std::string list = Raw<uint32_t>(8) + Raw<uint64_t>(values.size());
    for (const std::string& value : values) list += Text(value);
    return Key(key, 9, list);
  }
  template <typename T>
  GgufWriter& Numbers(std::string_view key, uint32_t type, const std::vector<T>& values) {
    std::string list = Raw(type) + Raw<uint64_t>(values.size());
    for (const T& value : values) list += Raw(value);
    return Key(key, 9, list);
  }

  // A tensor behind the others, 32-byte aligned. `dims`: the fastest first.
  GgufWriter& Tensor(std::string_view name, const std::vector<uint64_t>& dims, uint32_t type,
                     const std::string& bytes) {
    TensorAt(name, dims, type, data_.size());
    data_ += bytes;
    data_.resize((data_.size() + 31) / 32 * 32);
    return *this;
  }
  // Only the entry of the list.
  GgufWriter& TensorAt(std::string_view name, const std::vector<uint64_t>& dims, uint32_t type,
                       uint64_t offset) {
    tensors_ += Text(name) + Raw(static_cast<uint32_t>(dims.size()));
    for (uint64_t size : dims) tensors_ += Raw(size);
    tensors_ += Raw(type) + Raw(offset);
    ++tensor_count_;
    return *this;
  }

  std::string Bytes() const {
    std::string out = "GGUF" + Raw(version_) + Raw(tensor_count_) + Raw(key_count_);
    out += keys_ + tensors_;
    if (!data_.empty()) out.resize((out.size() + 31) / 32 * 32);
    return out + data_;
  }

 private:
  const uint32_t version_;
  uint64_t key_count_ = 0, tensor_count_ = 0;
  std::string keys_, tensors_, data_;
};

}  // namespace switchyard::test
