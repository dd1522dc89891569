#include "services/checkpoint/weight_check.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <functional>
#include <optional>
#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "services/base/ceil_div.h"
#include "services/base/cores.h"
#include "services/base/status.h"

namespace switchyard::checkpoint {
namespace {

constexpr size_t kChunkBytes = 4 << 20;  // of a piece

// The exponent bits of each element of a 64-bit word, and its lowest exponent bit: adding the
// latter to the masked former carries into the (masked out) sign bit iff all exponent bits are set,
// which is what NaN and infinity have in common.
struct Lanes {
  uint64_t exponents;
  uint64_t one;
  uint64_t signs;
};

std::optional<Lanes> LanesOf(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return Lanes{0x7f8000007f800000, 0x0080000000800000, 0x8000000080000000};
    case DType::kBF16:
      return Lanes{0x7f807f807f807f80, 0x0080008000800080, 0x8000800080008000};
    case DType::kF8E4M3:  // all bits but the sign's: it has NaNs, but no infinities
      return Lanes{0x7f7f7f7f7f7f7f7f, 0x0101010101010101, 0x8080808080808080};
    case DType::kF16:
      return Lanes{0x7c007c007c007c00, 0x0400040004000400, 0x8000800080008000};
    default:
      return std::nullopt;
  }
}

bool AllFinite(const std::byte* data, size_t bytes, const Lanes& lanes) {
  uint64_t seen = 0;
  size_t i = 0;
  for (; i + 8 <= bytes; i += 8) {
    uint64_t word;
    std::memcpy(&word, data + i, 8);
    seen |= (word & lanes.exponents) + lanes.one;
  }
  if (i < bytes) {
    uint64_t word = 0;
    std::memcpy(&word, data + i, bytes - i);
    seen |= (word & lanes.exponents) + lanes.one;
  }
  return (seen & lanes.signs) == 0;
}

// Where the float16 scales of a block lie; anything else of a block is finite whatever its bits.
struct ScalePlaces {
  int count;
  size_t at[2];
};

ScalePlaces ScalesOf(DType dtype) {
  switch (dtype) {
    case DType::kQ4K:
    case DType::kQ5K:
      return {2, {0, 2}};
    case DType::kQ6K:
      return {1, {208}};
    default:
      return {1, {0}};
  }
}

// Whether all blocks are finite; without a branch a block, as files have hundreds of millions.
bool BlocksAreFinite(const std::byte* data, size_t bytes, DType dtype) {
  const size_t step = static_cast<size_t>(BlockOf(dtype).bytes);
  uint32_t bad = 0;
  if (dtype == DType::kMXFP4) {  // its scale is a power of two, of which only 255 is no number
    for (size_t at = 0; at < bytes; at += step) bad |= data[at] == std::byte{255} ? 1u : 0u;
    return bad == 0;
  }
  const ScalePlaces scales = ScalesOf(dtype);
  for (int i = 0; i < scales.count; ++i) {
    for (size_t at = scales.at[i]; at < bytes; at += step) {
      uint16_t bits;
      std::memcpy(&bits, data + at, sizeof(bits));
      bad |= (bits & 0x7c00u) + 0x0400u;  // reaches the sign's place as in Lanes
    }
  }
  return (bad & 0x8000u) == 0;
}

// The first block of a range that holds a NaN or an infinity, or -1.
int64_t FirstBadBlock(const MappedTensor& tensor, uint64_t begin, size_t bytes) {
  const size_t step = static_cast<size_t>(BlockOf(tensor.dtype).bytes);
  const std::byte* data = tensor.data + begin;
  if (BlocksAreFinite(data, bytes, tensor.dtype)) return -1;
  size_t at = 0;
  while (BlocksAreFinite(data + at, step, tensor.dtype)) at += step;
  return static_cast<int64_t>((begin + at) / step);
}

float Element(const std::byte* data, size_t index, DType dtype) {
  if (dtype == DType::kF32) {
    float value;
    std::memcpy(&value, data + index * 4, 4);
    return value;
  }
  if (dtype == DType::kF8E4M3) return ToFloat(reinterpret_cast<const f8e4m3*>(data)[index]);
  // An exponent.
  if (dtype == DType::kU8) return data[index] == std::byte{255} ? std::nanf("") : 1.0f;
  uint16_t bits;
  std::memcpy(&bits, data + index * 2, 2);
  return dtype == DType::kBF16 ? ToFloat(bf16{bits}) : ToFloat(f16{bits});
}

absl::Status Describe(const TensorSource& source, const TensorRange& range, const std::byte* data,
                      size_t first_element, size_t elements, DType dtype) {
  size_t i = 0;
  while (i < elements && std::isfinite(Element(data, i, dtype))) ++i;
  const TensorInfo* info = source.Find(range.name);
  return DataLoss("{}: tensor \"{}\": element {} is {}; the checkpoint is damaged",
                  source.files()[static_cast<size_t>(info->file)], range.name, first_element + i,
                  std::isnan(Element(data, i, dtype)) ? "NaN" : "infinite");
}

// Elements of the whole tensor that lie before the range.
uint64_t ElementsBefore(const TensorRange& range, const MappedTensor& tensor, uint64_t bytes) {
  if (tensor.shape.empty() || range.first <= 0) return 0;
  const BlockShape block = BlockOf(tensor.dtype);
  const uint64_t elements =
      bytes / static_cast<uint64_t>(block.bytes) * static_cast<uint64_t>(block.elements);
  return static_cast<uint64_t>(range.first) * (elements / static_cast<uint64_t>(tensor.shape[0]));
}

absl::Status CheckScales(const TensorSource& source, const TensorRange& range,
                         const MappedTensor& tensor) {
  const WeightView w = MatrixOf(tensor);
  const WeightScales& s = w.scales;
  int64_t stacked = 1;
  for (size_t i = 0; i + 2 < tensor.shape.size(); ++i) stacked *= tensor.shape[i];
  for (int64_t r = 0; r < stacked * CeilDiv(w.out, s.group_rows); ++r) {
    for (int64_t g = 0; g < CeilDiv(w.in, s.group_columns); ++g) {
      const size_t at = static_cast<size_t>(r * s.row_stride + g * s.column_stride);
      const float scale = Element(s.data, at, s.dtype);
      if (std::isfinite(scale) && scale != 0) continue;
      const TensorInfo* info = source.Find(range.name);
      return DataLoss(
          "{}: tensor \"{}\": the scale of row {}, column {} is {}; the checkpoint is damaged",
          source.files()[static_cast<size_t>(info->file)], range.name, r * s.group_rows,
          g * s.group_columns,
          scale == 0          ? "zero"
          : std::isnan(scale) ? "NaN"
                              : "infinite");
    }
  }
  return absl::OkStatus();
}

// Nothing that integers say can be wrong: their pages are brought into memory.
void Touch(const std::byte* data, size_t bytes) {
  constexpr size_t kPageBytes = 4096;
  for (size_t at = 0; at < bytes; at += kPageBytes) {
    (void)*static_cast<const volatile std::byte*>(data + at);
  }
}

absl::Status CheckChunk(const TensorSource& source, const TensorRange& range,
                        const MappedTensor& tensor, uint64_t before, uint64_t at, size_t chunk) {
  if (IsBlocked(tensor.dtype)) {
    const int64_t bad = FirstBadBlock(tensor, at, chunk);
    if (bad < 0) return absl::OkStatus();
    const TensorInfo* info = source.Find(range.name);
    return DataLoss(
        "{}: tensor \"{}\": the scale of the block at element {} is no finite number; "
        "the checkpoint is damaged",
        source.files()[static_cast<size_t>(info->file)], range.name,
        before + static_cast<uint64_t>(bad * BlockOf(tensor.dtype).elements));
  }
  if (tensor.scales && tensor.dtype != DType::kF8E4M3) {
    Touch(tensor.data + at, chunk);
    return absl::OkStatus();
  }
  if (AllFinite(tensor.data + at, chunk, *LanesOf(tensor.dtype))) return absl::OkStatus();
  const size_t size = SizeOf(tensor.dtype);
  return Describe(source, range, tensor.data + at, before + at / size, chunk / size, tensor.dtype);
}

// What one thread looks through at a time.
struct Piece {
  size_t tensor = 0;
  uint64_t at = 0;
  size_t bytes = 0;
  bool last = false;  // of its tensor: its scales and checksum as well
};

// Threads take pieces in order. The error is that of the first piece which has one: all before it
// were taken earlier and are looked through to their end.
class Pieces {
 public:
  using Check = std::function<absl::Status(const Piece&)>;

  Pieces(std::vector<Piece> pieces, Check check)
      : pieces_(std::move(pieces)), check_(std::move(check)) {}

  // Until there is nothing more to take, or somebody's `go_on`, which may be null, says false.
  void Work(const std::function<bool(uint64_t)>& go_on) {
    for (size_t i = next_++; i < pieces_.size(); i = next_++) {
      if (i > first_bad_ || cancelled_) return;
      absl::Status status = check_(pieces_[i]);
      if (!status.ok()) Keep(i, std::move(status));
      const uint64_t done = done_ += pieces_[i].bytes;
      if (go_on && !go_on(done)) cancelled_ = true;
    }
  }
  absl::Status status() {
    if (cancelled_) return absl::CancelledError();
    absl::MutexLock lock(&mutex_);
    return status_;
  }

 private:
  void Keep(size_t piece, absl::Status status) {
    absl::MutexLock lock(&mutex_);
    if (piece >= first_bad_) return;
    first_bad_ = piece;
    status_ = std::move(status);
  }

  const std::vector<Piece> pieces_;
  const Check check_;
  std::atomic<size_t> next_ = 0;
  std::atomic<uint64_t> done_ = 0;
  std::atomic<size_t> first_bad_ = SIZE_MAX;
  std::atomic<bool> cancelled_ = false;
  absl::Mutex mutex_;
  absl::Status status_ ABSL_GUARDED_BY(mutex_);
};

uint64_t BytesOf(const MappedTensor& tensor) {
  int64_t elements = 1;
  for (int64_t size : tensor.shape) elements *= size;
  return static_cast<uint64_t>(switchyard::BytesOf(tensor.dtype, elements));
}

absl::Status CheckDType(const MappedTensor& tensor, const std::string& name) {
  if (IsBlocked(tensor.dtype) || tensor.scales || LanesOf(tensor.dtype).has_value()) {
    return absl::OkStatus();
  }
  return Unimplemented(
      "tensor \"{}\": dtype {} is not supported; supported: float32, bfloat16, float16 and "
      "GGUF's blocks",
      name, Name(tensor.dtype));
}

void Cut(size_t index, const MappedTensor& tensor, std::vector<Piece>* out) {
  const uint64_t bytes = BytesOf(tensor);
  const uint64_t unit = static_cast<uint64_t>(BlockOf(tensor.dtype).bytes);
  const uint64_t step = kChunkBytes / unit * unit;
  for (uint64_t at = 0; at < bytes; at += step) {
    const size_t chunk = std::min<uint64_t>(step, bytes - at);
    out->push_back({index, at, chunk, at + chunk == bytes});
  }
}

}  // namespace

absl::Status CheckWeights(const TensorSource& source, const std::vector<TensorRange>& ranges,
                          const ProgressFn& progress, int most_threads) {
  std::vector<MappedTensor> tensors;
  std::vector<Piece> pieces;
  uint64_t total = 0;
  for (const TensorRange& range : ranges) {
    SY_ASSIGN_OR_RETURN(MappedTensor tensor, source.Get(range));
    SY_RETURN_IF_ERROR(CheckDType(tensor, range.name));
    total += BytesOf(tensor);
    Cut(tensors.size(), tensor, &pieces);
    tensors.push_back(std::move(tensor));
  }
  const size_t threads = std::min<size_t>(
      {static_cast<size_t>(UsableCores()), static_cast<size_t>(most_threads), pieces.size()});
  Pieces work(std::move(pieces), [&](const Piece& piece) {
    const MappedTensor& tensor = tensors[piece.tensor];
    const TensorRange& range = ranges[piece.tensor];
    const uint64_t before = ElementsBefore(range, tensor, BytesOf(tensor));
    SY_RETURN_IF_ERROR(CheckChunk(source, range, tensor, before, piece.at, piece.bytes));
    if (!piece.last) return absl::OkStatus();
    if (tensor.scales) SY_RETURN_IF_ERROR(CheckScales(source, range, tensor));
    return source.Verify(range);
  });
  std::vector<std::thread> others;
  for (size_t t = 1; t < threads; ++t) others.emplace_back([&work] { work.Work(nullptr); });
  uint64_t told = 0;
  work.Work([&](uint64_t done) {
    told = done;
    return !progress || progress(done, total);
  });
  for (std::thread& other : others) other.join();
  SY_RETURN_IF_ERROR(work.status());
  const bool unsaid = progress && (told < total || total == 0);
  return unsaid && !progress(total, total) ? absl::CancelledError() : absl::OkStatus();
}

}  // namespace switchyard::checkpoint
