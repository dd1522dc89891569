#include "services/gguf/header.h"

#include <bit>
#include <cerrno>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <type_traits>
#include <unordered_set>

#include "services/base/file.h"
#include "services/base/status.h"
#include "services/base/utf8.h"

namespace switchyard::gguf {
namespace {

using nlohmann::json;

static_assert(std::endian::native == std::endian::little, "numbers are read as they lie");

constexpr uint64_t kMaxKeys = 1 << 16;
constexpr uint64_t kMaxTensors = 1 << 20;
constexpr uint64_t kMaxNameBytes = 1024;
constexpr uint64_t kMaxTextBytes = 64 << 20;
// Of all lists together: what a vocabulary of a million tokens needs, with merges, scores and
// types.
constexpr uint64_t kMaxElements = 8 << 20;
constexpr uint64_t kMaxAlignment = 1 << 20;
constexpr uint32_t kMaxDims = 4;
constexpr uint64_t kMaxTensorElements = uint64_t{1} << 59;  // no size in bytes overflows

enum ValueType : uint32_t {
  kU8 = 0,
  kI8 = 1,
  kU16 = 2,
  kI16 = 3,
  kU32 = 4,
  kI32 = 5,
  kF32 = 6,
  kBool = 7,
  kString = 8,
  kArray = 9,
  kU64 = 10,
  kI64 = 11,
  kF64 = 12,
};

double Shortest(float value) {
  return std::isfinite(value) ? std::strtod(fmt::format("{}", value).c_str(), nullptr) : value;
}

class Parser {
 public:
  Parser(std::istream& in, uint64_t file_bytes, const std::string& path, WantsList wants)
      : in_(in), wants_(wants) {
    header_.path = path;
    header_.file_bytes = file_bytes;
  }

  absl::StatusOr<Header> Run() {
    uint64_t tensors = 0, keys = 0;
    SY_RETURN_IF_ERROR(ReadCounts(tensors, keys));
    header_.metadata = json::object();
    for (uint64_t i = 0; i < keys; ++i) SY_RETURN_IF_ERROR(ReadEntry());
    header_.metadata_bytes = at_;
    SY_RETURN_IF_ERROR(ReadAlignment());
    for (uint64_t i = 0; i < tensors; ++i) SY_RETURN_IF_ERROR(ReadTensor());
    SY_RETURN_IF_ERROR(PlaceTensors());
    return std::move(header_);
  }

 private:
  template <typename... Args>
  absl::Status Broken(fmt::format_string<Args...> format, Args&&... args) const {
    return InvalidArgument("{}: {}", header_.path,
                           fmt::format(format, std::forward<Args>(args)...));
  }

  uint64_t Left() const { return header_.file_bytes - at_; }

  absl::Status Bytes(void* to, uint64_t bytes, std::string_view what) {
    SY_RETURN_IF_ERROR(Inside(bytes, what));
    if (!in_.read(static_cast<char*>(to), static_cast<std::streamsize>(bytes))) return Unreadable();
    at_ += bytes;
    return absl::OkStatus();
  }

  absl::Status Skip(uint64_t bytes, std::string_view what) {
    SY_RETURN_IF_ERROR(Inside(bytes, what));
    const auto size = static_cast<std::streamsize>(bytes);
    if (!in_.ignore(size) || in_.gcount() != size) return Unreadable();
    at_ += bytes;
    return absl::OkStatus();
  }

  absl::Status Inside(uint64_t bytes, std::string_view what) const {
    if (bytes <= Left()) return absl::OkStatus();
    return Broken("ends at byte {} inside {}; the file is truncated or its header lies",
                  header_.file_bytes, what);
  }
  absl::Status Unreadable() const {
    return DataLoss("{}: cannot be read at byte {}", header_.path, at_);
  }

  template <typename T>
  absl::StatusOr<T> Number(std::string_view what) {
    T value;
    SY_RETURN_IF_ERROR(Bytes(&value, sizeof value, what));
    return value;
  }

  absl::StatusOr<std::string> Text(uint64_t max_bytes, std::string_view what) {
    SY_ASSIGN_OR_RETURN(const uint64_t size, TextBytes(max_bytes, what));
    std::string text(size, '\0');
    SY_RETURN_IF_ERROR(Bytes(text.data(), size, what));
    if (!IsValidUtf8(text)) return Broken("{} is no UTF-8 text at byte {}", what, at_ - size);
    return text;
  }

  absl::StatusOr<uint64_t> TextBytes(uint64_t max_bytes, std::string_view what) {
    SY_ASSIGN_OR_RETURN(const uint64_t size, Number<uint64_t>(what));
    if (size <= max_bytes && size <= Left()) return size;
    return Broken("{} claims {} bytes of text at byte {}; at most {} are read and {} are left",
                  what, size, at_, max_bytes, Left());
  }

  absl::Status ReadCounts(uint64_t& tensors, uint64_t& keys) {
    char magic[4];
    SY_RETURN_IF_ERROR(Bytes(magic, sizeof magic, "the magic"));
    if (std::string_view(magic, 4) != "GGUF") return Broken("is no GGUF file");
    SY_ASSIGN_OR_RETURN(const uint32_t version, Number<uint32_t>("the version"));
    if ((version & 0xffff) == 0) {
      return Unimplemented("{}: is written in big-endian byte order; supported: little-endian",
                           header_.path);
    }
    if (version != 2 && version != 3) {
      return Unimplemented("{}: is GGUF version {}; supported: 2, 3", header_.path, version);
    }
    SY_ASSIGN_OR_RETURN(tensors, Number<uint64_t>("the number of tensors"));
    SY_ASSIGN_OR_RETURN(keys, Number<uint64_t>("the number of keys"));
    if (tensors > kMaxTensors) return Broken("lists {} tensors, at most {}", tensors, kMaxTensors);
    if (keys > kMaxKeys) return Broken("lists {} keys, at most {}", keys, kMaxKeys);
    return absl::OkStatus();
  }

  absl::Status ReadEntry() {
    SY_ASSIGN_OR_RETURN(const std::string key, Text(kMaxNameBytes, "a key"));
    if (key.empty()) return Broken("has an empty key at byte {}", at_);
    if (!keys_.insert(key).second) return Broken("lists the key {} twice", key);
    SY_ASSIGN_OR_RETURN(const uint32_t type, Number<uint32_t>(key));
    json value;
    if (type == kArray) {
      SY_ASSIGN_OR_RETURN(const ListHead head, ReadListHead(key));
      if (key.starts_with("tokenizer.") && !wants_(key)) return SkipList(head, key);
      SY_ASSIGN_OR_RETURN(value, ReadList(head, key));
    } else {
      SY_ASSIGN_OR_RETURN(value, ReadValue(type, key));
    }
    header_.metadata.emplace(key, std::move(value));
    return absl::OkStatus();
  }

  absl::Status UnknownType(uint32_t type, const std::string& key) const {
    return Broken("{} has the unknown value type {}", key, type);
  }

  struct ListHead {
    uint32_t type;
    uint64_t size;
  };

  absl::StatusOr<ListHead> ReadListHead(const std::string& key) {
    SY_ASSIGN_OR_RETURN(const uint32_t type, Number<uint32_t>(key));
    SY_ASSIGN_OR_RETURN(const uint64_t size, Number<uint64_t>(key));
    if (type == kArray) return Broken("{} is a list of lists, which no reader supports", key);
    if (type != kString && BytesOfValue(type) == 0) return UnknownType(type, key);
    // An element has a byte at least, so that a count beyond the file ends here.
    if (size > Left() || size > kMaxElements - elements_) {
      return Broken("{} claims {} elements; all lists together may have {} and {} bytes are left",
                    key, size, kMaxElements, Left());
    }
    elements_ += size;
    return ListHead{type, size};
  }

  absl::StatusOr<json> ReadList(const ListHead& head, const std::string& key) {
    json list = json::array();
    list.get_ref<json::array_t&>().reserve(head.size);
    for (uint64_t i = 0; i < head.size; ++i) {
      SY_ASSIGN_OR_RETURN(json value, ReadValue(head.type, key));
      list.push_back(std::move(value));
    }
    return list;
  }

  absl::Status SkipList(const ListHead& head, const std::string& key) {
    if (head.type != kString) return Skip(head.size * BytesOfValue(head.type), key);
    for (uint64_t i = 0; i < head.size; ++i) {
      SY_ASSIGN_OR_RETURN(const uint64_t bytes, TextBytes(kMaxTextBytes, key));
      SY_RETURN_IF_ERROR(Skip(bytes, key));
    }
    return absl::OkStatus();
  }

  // Of numbers and booleans; 0: none of them.
  static uint64_t BytesOfValue(uint32_t type) {
    switch (type) {
      case kU8:
      case kI8:
      case kBool:
        return 1;
      case kU16:
      case kI16:
        return 2;
      case kU32:
      case kI32:
      case kF32:
        return 4;
      case kU64:
      case kI64:
      case kF64:
        return 8;
      default:
        return 0;
    }
  }

  template <typename T>
  absl::StatusOr<json> NumberAsJson(const std::string& key) {
    SY_ASSIGN_OR_RETURN(const T value, Number<T>(key));
    // An id is an id, whichever type a writer chose for it.
    if constexpr (std::is_integral_v<T>) {
      if (value >= 0) return json(static_cast<uint64_t>(value));
    }
    return json(value);
  }

  absl::StatusOr<json> ReadValue(uint32_t type, const std::string& key) {
    switch (type) {
      case kU8:
        return NumberAsJson<uint8_t>(key);
      case kI8:
        return NumberAsJson<int8_t>(key);
      case kU16:
        return NumberAsJson<uint16_t>(key);
      case kI16:
        return NumberAsJson<int16_t>(key);
      case kU32:
        return NumberAsJson<uint32_t>(key);
      case kI32:
        return NumberAsJson<int32_t>(key);
      case kU64:
        return NumberAsJson<uint64_t>(key);
      case kI64:
        return NumberAsJson<int64_t>(key);
      case kF64:
        return NumberAsJson<double>(key);
      case kF32: {
        SY_ASSIGN_OR_RETURN(const float value, Number<float>(key));
        return json(Shortest(value));
      }
      case kBool: {
        SY_ASSIGN_OR_RETURN(const uint8_t value, Number<uint8_t>(key));
        if (value > 1) return Broken("{} is {}, expected a boolean (0 or 1)", key, value);
        return json(value == 1);
      }
      case kString: {
        SY_ASSIGN_OR_RETURN(std::string text, Text(kMaxTextBytes, key));
        return json(std::move(text));
      }
      default:
        return UnknownType(type, key);
    }
  }

  absl::Status ReadAlignment() {
    const auto it = header_.metadata.find("general.alignment");
    if (it == header_.metadata.end()) return absl::OkStatus();
    const uint64_t value = it->is_number_unsigned() ? it->get<uint64_t>() : 0;
    if (!std::has_single_bit(value) || value > kMaxAlignment) {
      return Broken("general.alignment is {}, expected a power of two up to {}", it->dump(),
                    kMaxAlignment);
    }
    alignment_ = value;
    return absl::OkStatus();
  }

  absl::Status ReadTensor() {
    Tensor t;
    SY_ASSIGN_OR_RETURN(t.name, Text(kMaxNameBytes, "a tensor's name"));
    if (!names_.insert(t.name).second) return Broken("lists the tensor \"{}\" twice", t.name);
    SY_ASSIGN_OR_RETURN(const uint32_t dims, Number<uint32_t>(t.name));
    if (dims == 0 || dims > kMaxDims) {
      return Broken("tensor \"{}\" has {} dimensions, expected 1 to {}", t.name, dims, kMaxDims);
    }
    uint64_t elements = 1;
    for (uint32_t i = 0; i < dims; ++i) {
      SY_ASSIGN_OR_RETURN(const uint64_t size, Number<uint64_t>(t.name));
      if (size >= kMaxTensorElements || (size != 0 && elements >= kMaxTensorElements / size)) {
        return Broken("tensor \"{}\" has a shape that overflows", t.name);
      }
      elements *= size;
      t.dims.push_back(size);
    }
    SY_ASSIGN_OR_RETURN(t.type, Number<uint32_t>(t.name));
    SY_ASSIGN_OR_RETURN(t.offset, Number<uint64_t>(t.name));
    header_.tensors.push_back(std::move(t));
    return absl::OkStatus();
  }

  // Offsets in the header count from the first aligned byte behind it.
  absl::Status PlaceTensors() {
    const uint64_t begin = (at_ + alignment_ - 1) / alignment_ * alignment_;
    for (Tensor& t : header_.tensors) {
      if (t.offset % alignment_ != 0) {
        return Broken("tensor \"{}\" begins at byte {} of the data, no multiple of {}", t.name,
                      t.offset, alignment_);
      }
      if (begin > header_.file_bytes || t.offset > header_.file_bytes - begin) {
        return Broken(
            "tensor \"{}\" begins at byte {} of the data, beyond the end of the file ({} bytes): "
            "the file is truncated or its header lies",
            t.name, t.offset, header_.file_bytes);
      }
      t.offset += begin;
    }
    return absl::OkStatus();
  }

  std::istream& in_;
  const WantsList wants_;
  uint64_t at_ = 0;  // bytes read so far
  uint64_t elements_ = 0;
  uint64_t alignment_ = 32;
  std::unordered_set<std::string> keys_, names_;
  Header header_;
};

}  // namespace

bool IsGguf(const std::string& path) {
  std::error_code ignored;
  return path.ends_with(".gguf") && !std::filesystem::is_directory(path, ignored);
}

absl::StatusOr<Header> ParseHeader(std::istream& in, uint64_t file_bytes, const std::string& path,
                                   WantsList wants) {
  return Parser(in, file_bytes, path, wants).Run();
}

absl::StatusOr<Header> ReadHeader(const std::string& path, WantsList wants) {
  std::vector<char> buffer(256 << 10);
  std::ifstream in;
  in.rdbuf()->pubsetbuf(buffer.data(), static_cast<std::streamsize>(buffer.size()));
  in.open(path, std::ios::binary);
  std::error_code error;
  const uint64_t bytes = std::filesystem::file_size(path, error);
  if (!in || error) return NotFound("{}: {}", path, std::strerror(errno));
  return ParseHeader(in, bytes, path, wants);
}

}  // namespace switchyard::gguf
