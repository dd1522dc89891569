// Byte-pair encoding: a piece starts as characters (or bytes, where the vocabulary spells bytes)
// and the pair of lowest rank is merged, leftmost first, until none is left. Immutable and
// thread-safe; a BpeScratch belongs to one thread at a time.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"

namespace switchyard {

struct BpeMerge {
  uint32_t rank = 0;
  int32_t id = -1;  // the token that the pair becomes
};

struct StringViewHash {
  size_t operator()(std::string_view text) const;
};
// The keys point into storage that outlives the map.
using IdByText = absl::flat_hash_map<std::string_view, int32_t, StringViewHash>;

// The model of tokenizer.json, filled by the loader.
struct BpeModel {
  // Pieces are raw bytes and the vocabulary spells them in the byte-level alphabet; otherwise
  // pieces are looked up as they are.
  bool byte_level = false;
  // A piece that is a token of its own is not merged from parts.
  bool ignore_merges = false;
  bool byte_fallback = false;
  bool fuse_unknown = false;
  std::optional<int32_t> unknown_id;
  // By spelling; byte_level: by the bytes that are spelt.
  IdByText ids;
  // Per byte: its token (byte_level) or its fallback "<0xHH>"; -1 where the vocabulary lacks it.
  std::array<int32_t, 256> byte_ids{};
  // (left id << 32 | right id) → merge.
  absl::flat_hash_map<uint64_t, BpeMerge> merges;
};

// Work space and a bounded cache of pieces already encoded (direct-mapped, 1 MiB).
class BpeScratch {
 public:
  BpeScratch();
  ~BpeScratch();

 private:
  friend class BpeEncoder;
  struct Symbol {
    int32_t id;
    int32_t previous;
    int32_t next;
    bool live;
  };
  struct Candidate {
    uint32_t rank;
    int32_t position;
    int32_t id;
  };
  struct CacheSlot;

  std::vector<int32_t> ids_;
  std::vector<uint32_t> ranks_;
  std::vector<Symbol> symbols_;
  std::vector<Candidate> heap_;
  std::unique_ptr<CacheSlot[]> cache_;
};

class BpeEncoder {
 public:
  // The model outlives the encoder.
  explicit BpeEncoder(const BpeModel* model) : model_(*model) {}

  // Appends the ids of a piece that is not empty.
  void Encode(std::string_view piece, BpeScratch* scratch, std::vector<int32_t>* out) const;

 private:
  void EncodeUncached(std::string_view piece, BpeScratch* scratch, std::vector<int32_t>* out) const;
  void InitialIds(std::string_view piece, std::vector<int32_t>* ids) const;
  void InitialIdsOfChars(std::string_view piece, std::vector<int32_t>* ids) const;
  const BpeMerge* MergeOf(int32_t left, int32_t right) const;
  void MergeShort(BpeScratch* scratch) const;
  void MergeLong(BpeScratch* scratch) const;

  const BpeModel& model_;
};

}  // namespace switchyard
