#include "services/checkpoint/header.h"

#include <algorithm>
#include <bit>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <unordered_set>

#include "services/base/json_error.h"
#include "services/base/status.h"
#include "services/checkpoint/mapped_source.h"

namespace switchyard::checkpoint {
namespace {

using nlohmann::json;

constexpr size_t kMaxRank = 16;

// Receives the parser's events and builds the tensors: no tree, so a header costs what its tensors
// cost, and duplicate keys are seen (a tree would keep the last one silently).
class HeaderSax : public json::json_sax_t {
 public:
  HeaderSax(std::string_view path, uint64_t data_begin, uint64_t data_bytes)
      : path_(path), data_begin_(data_begin), data_bytes_(data_bytes) {}

  std::vector<TensorInfo> TakeTensors() { return std::move(tensors_); }
  const absl::Status& status() const { return status_; }

  bool null() override { return Scalar("null"); }
  bool boolean(bool) override { return Scalar("a boolean"); }
  bool number_integer(number_integer_t) override { return Scalar("a negative number"); }
  bool number_float(number_float_t, const string_t&) override { return Scalar("a fraction"); }
  bool binary(binary_t&) override { return Scalar("binary data"); }

  bool number_unsigned(number_unsigned_t value) override {
    if (state_ != State::kArray) return Scalar("a number");
    if (numbers_->size() >= (numbers_ == &offsets_ ? 2 : kMaxRank)) {
      return Fail("has too many numbers in a list");
    }
    numbers_->push_back(value);
    return true;
  }

  bool string(string_t& value) override {
    if (state_ == State::kMetadata) return true;
    if (state_ == State::kTensor && field_ == "dtype") {
      dtype_ = value;
      return true;
    }
    return Scalar("a string");
  }

  bool start_object(std::size_t) override {
    switch (state_) {
      case State::kStart:
        state_ = State::kTop;
        return true;
      case State::kTop:
        state_ = name_ == "__metadata__" ? State::kMetadata : State::kTensor;
        fields_.clear();
        dtype_.reset();
        shape_.clear();
        offsets_.clear();
        return true;
      default:
        return Fail("has an object where none belongs");
    }
  }

  bool key(string_t& value) override {
    if (state_ == State::kTop) {
      name_ = value;
      return names_.insert(value).second || Fail("is listed twice");
    }
    field_ = value;
    if (state_ == State::kMetadata) return true;
    if (value != "dtype" && value != "shape" && value != "data_offsets") {
      return Fail(fmt::format("has an unknown field \"{}\"", value.substr(0, 80)));
    }
    return fields_.insert(value).second || Fail(fmt::format("has two fields \"{}\"", value));
  }

  bool end_object() override {
    if (state_ == State::kMetadata) {
      state_ = State::kTop;
      return true;
    }
    if (state_ == State::kTensor) {
      state_ = State::kTop;
      return FinishTensor();
    }
    state_ = State::kEnd;
    return true;
  }

  bool start_array(std::size_t) override {
    if (state_ != State::kTensor || field_ == "dtype") {
      return Fail("has a list where none belongs");
    }
    numbers_ = field_ == "shape" ? &shape_ : &offsets_;
    state_ = State::kArray;
    return true;
  }

  bool end_array() override {
    state_ = State::kTensor;
    return true;
  }

  bool parse_error(std::size_t, const std::string&,
                   const nlohmann::detail::exception& error) override {
    if (status_.ok()) {
      status_ = InvalidArgument("{}: the header is {}", path_, NotValidJson(error.what()));
    }
    return false;
  }

 private:
  enum class State { kStart, kTop, kMetadata, kTensor, kArray, kEnd };

  // A value where the format has none of that kind.
  bool Scalar(std::string_view what) {
    if (state_ == State::kStart) {
      status_ = InvalidArgument("{}: the header is {}, expected an object", path_, what);
      return false;
    }
    if (state_ == State::kTop) return Fail(fmt::format("is {}, expected an object", what));
    return Fail(fmt::format("has {} in field \"{}\"", what, field_.substr(0, 80)));
  }

  bool Fail(std::string_view what) {
    if (status_.ok()) status_ = InvalidArgument("{}: tensor \"{}\" {}", path_, name_, what);
    return false;
  }

  bool FinishTensor() {
    if (!dtype_.has_value()) return Fail("has no dtype");
    if (!fields_.contains("shape")) return Fail("has no shape");
    if (offsets_.size() != 2) return Fail("has no data_offsets of two numbers");
    const uint64_t begin = offsets_[0];
    const uint64_t end = offsets_[1];
    if (begin > end || end > data_bytes_) {
      return Fail(
          fmt::format("claims bytes {} to {} of a data section of {}: the file is truncated "
                      "or its header lies",
                      begin, end, data_bytes_));
    }
    TensorInfo info;
    info.name = name_;
    info.bytes = end - begin;
    info.offset = data_begin_ + begin;
    const auto elements = Elements();
    if (!elements.has_value()) return Fail("has a shape that overflows");
    for (uint64_t size : shape_) info.shape.push_back(static_cast<int64_t>(size));
    if (const auto dtype = DTypeFromSafetensors(*dtype_); dtype.ok()) {
      info.dtype = *dtype;
      if (*elements * SizeOf(info.dtype) != info.bytes) {
        return Fail(fmt::format("has shape [{}] of {}, which is {} bytes, but claims {}",
                                fmt::join(shape_, ", "), *dtype_, *elements * SizeOf(info.dtype),
                                info.bytes));
      }
    } else {
      info.unknown_dtype = dtype_->empty() ? "?" : *dtype_;
    }
    tensors_.push_back(std::move(info));
    return true;
  }

  // The product of the shape, below 2^59 so that no size in bytes overflows.
  std::optional<uint64_t> Elements() const {
    constexpr uint64_t kMax = uint64_t{1} << 59;
    uint64_t product = 1;
    for (uint64_t size : shape_) {
      if (size >= kMax || (size != 0 && product >= kMax / size)) return std::nullopt;
      product *= size;
    }
    return product;
  }

  const std::string_view path_;
  const uint64_t data_begin_;
  const uint64_t data_bytes_;
  absl::Status status_;
  std::vector<TensorInfo> tensors_;
  std::unordered_set<std::string> names_;

  State state_ = State::kStart;
  std::string name_;                        // of the tensor that is being read
  std::string field_;                       // of it
  std::unordered_set<std::string> fields_;  // of it, read so far
  std::optional<std::string> dtype_;
  std::vector<uint64_t> shape_;
  std::vector<uint64_t> offsets_;
  std::vector<uint64_t>* numbers_ = nullptr;  // the list that is being read
};

}  // namespace

absl::StatusOr<Header> ParseHeader(std::string_view text, std::string_view path,
                                   uint64_t data_begin, uint64_t data_bytes) {
  HeaderSax sax(path, data_begin, data_bytes);
  bool parsed = false;
  try {
    parsed = json::sax_parse(text.begin(), text.end(), &sax);
  } catch (const json::exception& error) {
    return InvalidArgument("{}: the header is {}", path, NotValidJson(error.what()));
  }
  SY_RETURN_IF_ERROR(sax.status());
  if (!parsed) return InvalidArgument("{}: the header is not valid JSON", path);
  Header header{.tensors = sax.TakeTensors(), .data_begin = data_begin};
  SY_RETURN_IF_ERROR(CheckOverlaps(path, header.tensors));
  return header;
}

absl::StatusOr<Header> ReadHeader(const MappedFile& file) {
  static_assert(std::endian::native == std::endian::little);
  uint64_t length = 0;
  if (file.size() < sizeof length) {
    return InvalidArgument("{}: {} bytes long, too short for a safetensors file", file.path(),
                           file.size());
  }
  SY_RETURN_IF_ERROR(file.Read(0, &length, sizeof length));
  if (length > kMaxHeaderBytes) {
    return InvalidArgument("{}: header of {} bytes, expected at most {}; is it a safetensors file?",
                           file.path(), length, kMaxHeaderBytes);
  }
  if (length > file.size() - sizeof length) {
    return InvalidArgument("{}: header of {} bytes in a file of {}: the file is truncated",
                           file.path(), length, file.size());
  }
  std::string text(length, '\0');
  SY_RETURN_IF_ERROR(file.Read(sizeof length, text.data(), text.size()));
  const uint64_t data_begin = sizeof length + length;
  return ParseHeader(text, file.path(), data_begin, file.size() - data_begin);
}

}  // namespace switchyard::checkpoint
