#include "services/tokenizer/bpe.h"

#include <xxhash.h>

#include <algorithm>
#include <cstring>
#include <limits>

#include "services/base/utf8.h"

namespace switchyard {
namespace {

constexpr size_t kCacheSlots = 16 * 1024;  // a power of two
constexpr size_t kCachedBytesMax = 30;
constexpr size_t kCachedIdsMax = 8;
// Up to here a scan for the best pair beats a heap.
constexpr size_t kShortSymbolsMax = 48;
constexpr uint32_t kNoRank = std::numeric_limits<uint32_t>::max();

uint64_t PairKey(int32_t left, int32_t right) {
  return (static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32) | static_cast<uint32_t>(right);
}

}  // namespace

size_t StringViewHash::operator()(std::string_view text) const {
  return XXH3_64bits(text.data(), text.size());
}

struct BpeScratch::CacheSlot {
  uint8_t length = 0;  // 0: empty
  uint8_t count = 0;
  char text[kCachedBytesMax];
  int32_t ids[kCachedIdsMax];
};

BpeScratch::BpeScratch() : cache_(new CacheSlot[kCacheSlots]) {}
BpeScratch::~BpeScratch() = default;

void BpeEncoder::Encode(std::string_view piece, BpeScratch* scratch,
                        std::vector<int32_t>* out) const {
  if (piece.size() > kCachedBytesMax) return EncodeUncached(piece, scratch, out);
  const uint64_t hash = XXH3_64bits(piece.data(), piece.size());
  BpeScratch::CacheSlot& slot = scratch->cache_[hash & (kCacheSlots - 1)];
  if (slot.length == piece.size() && std::memcmp(slot.text, piece.data(), piece.size()) == 0) {
    out->insert(out->end(), slot.ids, slot.ids + slot.count);
    return;
  }
  const size_t begin = out->size();
  EncodeUncached(piece, scratch, out);
  const size_t count = out->size() - begin;
  if (count > kCachedIdsMax) return;
  slot.length = static_cast<uint8_t>(piece.size());
  slot.count = static_cast<uint8_t>(count);
  std::memcpy(slot.text, piece.data(), piece.size());
  std::copy(out->begin() + begin, out->end(), slot.ids);
}

void BpeEncoder::EncodeUncached(std::string_view piece, BpeScratch* scratch,
                                std::vector<int32_t>* out) const {
  if (model_.ignore_merges) {
    if (const auto whole = model_.ids.find(piece); whole != model_.ids.end()) {
      out->push_back(whole->second);
      return;
    }
  }
  scratch->ids_.clear();
  InitialIds(piece, &scratch->ids_);
  if (scratch->ids_.size() <= kShortSymbolsMax) {
    MergeShort(scratch);
  } else {
    MergeLong(scratch);
  }
  out->insert(out->end(), scratch->ids_.begin(), scratch->ids_.end());
}

void BpeEncoder::InitialIds(std::string_view piece, std::vector<int32_t>* ids) const {
  if (!model_.byte_level) return InitialIdsOfChars(piece, ids);
  bool unknown_before = false;
  for (char c : piece) {
    const int32_t id = model_.byte_ids[static_cast<uint8_t>(c)];
    if (id >= 0) {
      ids->push_back(id);
    } else if (model_.unknown_id && !(model_.fuse_unknown && unknown_before)) {
      ids->push_back(*model_.unknown_id);
    }
    unknown_before = id < 0;
  }
}

// As the Hugging Face library does it, an unknown token is written when the next known character
// comes, so that bytes of the fallback overtake it.
void BpeEncoder::InitialIdsOfChars(std::string_view piece, std::vector<int32_t>* ids) const {
  bool unknown_waits = false;
  while (!piece.empty()) {
    const std::string_view spelt = piece.substr(0, FirstUtf8(piece).size);
    piece.remove_prefix(spelt.size());
    if (const auto known = model_.ids.find(spelt); known != model_.ids.end()) {
      if (unknown_waits) ids->push_back(*model_.unknown_id);
      unknown_waits = false;
      ids->push_back(known->second);
      continue;
    }
    const auto byte_id = [&](char c) { return model_.byte_ids[static_cast<uint8_t>(c)]; };
    if (model_.byte_fallback &&
        std::all_of(spelt.begin(), spelt.end(), [&](char c) { return byte_id(c) >= 0; })) {
      for (char c : spelt) ids->push_back(byte_id(c));
      continue;
    }
    if (!model_.unknown_id) continue;
    if (unknown_waits && !model_.fuse_unknown) ids->push_back(*model_.unknown_id);
    unknown_waits = true;
  }
  if (unknown_waits) ids->push_back(*model_.unknown_id);
}

const BpeMerge* BpeEncoder::MergeOf(int32_t left, int32_t right) const {
  const auto found = model_.merges.find(PairKey(left, right));
  return found == model_.merges.end() ? nullptr : &found->second;
}

// Keeps the rank of each neighbouring pair in an array and takes the first smallest.
void BpeEncoder::MergeShort(BpeScratch* scratch) const {
  std::vector<int32_t>& ids = scratch->ids_;
  std::vector<uint32_t>& ranks = scratch->ranks_;
  const auto rank_at = [&](size_t i) {
    const BpeMerge* merge = MergeOf(ids[i], ids[i + 1]);
    return merge == nullptr ? kNoRank : merge->rank;
  };
  ranks.clear();
  for (size_t i = 0; i + 1 < ids.size(); ++i) ranks.push_back(rank_at(i));
  while (!ranks.empty()) {
    const size_t at = std::min_element(ranks.begin(), ranks.end()) - ranks.begin();
    if (ranks[at] == kNoRank) break;
    ids[at] = MergeOf(ids[at], ids[at + 1])->id;
    ids.erase(ids.begin() + at + 1);
    ranks.erase(ranks.begin() + at);
    if (at < ranks.size()) ranks[at] = rank_at(at);
    if (at > 0) ranks[at - 1] = rank_at(at - 1);
  }
}

// Symbols in a linked list, candidate pairs in a heap; candidates that a merge nearby has made
// stale are recognised when they come up.
void BpeEncoder::MergeLong(BpeScratch* scratch) const {
  using Candidate = BpeScratch::Candidate;
  auto& symbols = scratch->symbols_;
  auto& heap = scratch->heap_;
  const auto worse = [](const Candidate& a, const Candidate& b) {
    return a.rank != b.rank ? a.rank > b.rank : a.position > b.position;
  };
  const auto offer = [&](int32_t left, bool push) {
    if (left < 0 || symbols[left].next < 0) return;
    const BpeMerge* merge = MergeOf(symbols[left].id, symbols[symbols[left].next].id);
    if (merge == nullptr) return;
    heap.push_back({merge->rank, left, merge->id});
    if (push) std::push_heap(heap.begin(), heap.end(), worse);
  };

  const int32_t count = static_cast<int32_t>(scratch->ids_.size());
  symbols.clear();
  heap.clear();
  for (int32_t i = 0; i < count; ++i) {
    symbols.push_back({scratch->ids_[i], i - 1, i + 1 < count ? i + 1 : -1, true});
  }
  for (int32_t i = 0; i < count; ++i) offer(i, false);
  std::make_heap(heap.begin(), heap.end(), worse);

  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), worse);
    const Candidate best = heap.back();
    heap.pop_back();
    BpeScratch::Symbol& left = symbols[best.position];
    if (!left.live || left.next < 0) continue;
    BpeScratch::Symbol& right = symbols[left.next];
    const BpeMerge* merge = MergeOf(left.id, right.id);
    if (merge == nullptr || merge->id != best.id) continue;
    left.id = best.id;
    right.live = false;
    left.next = right.next;
    if (left.next >= 0) symbols[left.next].previous = best.position;
    offer(left.previous, true);
    offer(best.position, true);
  }
  scratch->ids_.clear();
  for (int32_t i = count > 0 ? 0 : -1; i >= 0; i = symbols[i].next) {
    scratch->ids_.push_back(symbols[i].id);
  }
}

}  // namespace switchyard
