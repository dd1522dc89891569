#include "expert-worker/store/tiers.h"

#include <algorithm>
#include <cmath>

#include "services/base/status.h"

namespace switchyard::worker {
namespace {

constexpr size_t kMostAsked = 4096;

int64_t NowMicros() {
  return std::chrono::duration_cast<std::chrono::microseconds>(
             Tiers::Clock::now().time_since_epoch())
      .count();
}

}  // namespace

double HeatAfterUse(double heat, double when) {
  const double high = std::max(heat, when), low = std::min(heat, when);
  return high + std::log2(1 + std::exp2(low - high));
}

Tiers::Tiers(const ExpertStore& store, ExpertMemory& memory, const TierOptions& options)
    : store_(store),
      memory_(memory),
      options_(options),
      slots_(std::make_unique<Slot[]>(static_cast<size_t>(store.layers()) *
                                      static_cast<size_t>(store.experts()))),
      rounds_(std::make_unique<std::atomic<uint64_t>[]>(static_cast<size_t>(store.layers()))) {
  if (options.memory_bytes == 0) return;
  {
    absl::MutexLock lock(&mutex_);
    for (int32_t layer = 0; layer < store.layers(); ++layer) {
      for (int32_t expert = 0; expert < store.experts(); ++expert) {
        const ExpertWeights* weights = store.Find(layer, expert);
        if (weights == nullptr) continue;
        const uint64_t bytes = memory.bytes(*weights);
        if (resident_bytes_ + bytes > options.memory_bytes) continue;
        const size_t index = Index({layer, expert});
        Reserve(index, bytes);
        slots_[index].tier.store(Tier::kMemory);
      }
    }
  }
  prefetcher_ = std::thread([this] { Prefetch(); });
}

Tiers::~Tiers() {
  if (!prefetcher_.joinable()) return;
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
  }
  prefetcher_.join();
}

void Tiers::Begin(Clock::time_point now) {
  const std::chrono::duration<double> seconds = now.time_since_epoch();
  now_ = seconds.count() / absl::ToDoubleSeconds(options_.half_life);
  layer_ = -1;
}

void Tiers::End() {
  computation_.fetch_add(1);
  if (!tight()) return;
  if (layer_ >= 0) rounds_[static_cast<size_t>(layer_)].fetch_add(1);
  std::vector<size_t> victims;
  {
    absl::MutexLock lock(&mutex_);
    MakeRoom(0, /*must=*/true, &victims);
  }
  EvictAll(victims);
}

absl::StatusOr<const ExpertWeights*> Tiers::Use(int64_t layer, int64_t expert) {
  const ExpertWeights* weights = store_.Find(layer, expert);
  if (weights == nullptr || options_.memory_bytes == 0) return weights;
  layer_ = layer;
  const size_t index = Index({static_cast<int32_t>(layer), static_cast<int32_t>(expert)});
  Slot& slot = slots_[index];
  if (slot.used_in.exchange(computation_.load()) != computation_.load()) {
    slot.heat.store(HeatAfterUse(slot.heat.load(std::memory_order_relaxed), now_),
                    std::memory_order_relaxed);
  }
  slot.wanted_until_us.store(INT64_MIN, std::memory_order_relaxed);
  if (slot.tier.load() == Tier::kMemory) {
    hits_.fetch_add(1, std::memory_order_relaxed);
    return weights;
  }
  const int64_t start_us = NowMicros();
  misses_.fetch_add(1, std::memory_order_relaxed);
  absl::StatusOr<bool> read = Promote(index, memory_.bytes(*weights), /*must=*/true);
  absl::Status status = read.status();
  // Somebody else is at it, and both wait for the same pages, or there is no room.
  if (read.ok() && !*read) status = memory_.Reach(IdOf(index));
  stall_us_.fetch_add(static_cast<uint64_t>(NowMicros() - start_us), std::memory_order_relaxed);
  if (!status.ok() && !absl::IsUnavailable(status)) return status;
  return weights;
}

absl::StatusOr<bool> Tiers::Promote(size_t index, uint64_t bytes, bool must) {
  std::vector<size_t> victims;
  bool reserved = false;
  {
    absl::MutexLock lock(&mutex_);
    if (slots_[index].tier.load() != Tier::kMapped) return false;
    reserved = MakeRoom(bytes, must, &victims) || (must && memory_.elastic());
    if (reserved) Reserve(index, bytes);
  }
  EvictAll(victims);
  if (!reserved) return false;
  const absl::Status status = memory_.Populate(IdOf(index));
  Settle(index, status.ok());
  if (!status.ok()) return status;
  promotions_.fetch_add(1, std::memory_order_relaxed);
  bytes_promoted_.fetch_add(bytes, std::memory_order_relaxed);
  return true;
}

void Tiers::Reserve(size_t index, uint64_t bytes) {
  slots_[index].tier.store(Tier::kComing);
  residents_.push_back({index, bytes});
  resident_bytes_ += bytes;
}

void Tiers::Settle(size_t index, bool read) {
  absl::MutexLock lock(&mutex_);
  const size_t place = PlaceOf(index);
  if (place < residents_.size() && read) {
    slots_[index].tier.store(Tier::kMemory);
  } else if (place < residents_.size()) {
    Leave(place);
  }
}

size_t Tiers::PlaceOf(size_t index) const {
  size_t place = 0;
  while (place < residents_.size() && residents_[place].index != index) ++place;
  return place;
}

void Tiers::Leave(size_t place) {
  slots_[residents_[place].index].tier.store(Tier::kMapped);
  resident_bytes_ -= residents_[place].bytes;
  residents_[place] = residents_.back();
  residents_.pop_back();
}

bool Tiers::Wanted(size_t index, int64_t now_us) const {
  const Slot& slot = slots_[index];
  if (slot.wanted_until_us.load(std::memory_order_relaxed) <= now_us) return false;
  const uint64_t round = slot.wanted_in.load(std::memory_order_relaxed);
  return round == kAnyRound || round == rounds_[static_cast<size_t>(IdOf(index).layer)].load();
}

size_t Tiers::Coldest(bool wanted_too) const {
  const int64_t now_us = NowMicros();
  const uint64_t computation = computation_.load();
  size_t coldest = residents_.size();
  double least = 0;
  for (size_t place = 0; place < residents_.size(); ++place) {
    const Slot& slot = slots_[residents_[place].index];
    if (slot.tier.load() != Tier::kMemory || slot.used_in.load() == computation) continue;
    if (!wanted_too && Wanted(residents_[place].index, now_us)) continue;
    const double heat = slot.heat.load(std::memory_order_relaxed);
    if (coldest < residents_.size() && heat >= least) continue;
    coldest = place;
    least = heat;
  }
  return coldest;
}

bool Tiers::MakeRoom(uint64_t bytes, bool must, std::vector<size_t>* victims) {
  while (resident_bytes_ + bytes > options_.memory_bytes) {
    size_t place = Coldest(/*wanted_too=*/false);
    if (must && place == residents_.size()) place = Coldest(/*wanted_too=*/true);
    if (place == residents_.size()) return false;
    victims->push_back(residents_[place].index);
    Leave(place);
  }
  return true;
}

void Tiers::EvictAll(const std::vector<size_t>& victims) {
  for (const size_t index : victims) {
    memory_.Evict(IdOf(index));
    demotions_.fetch_add(1, std::memory_order_relaxed);
  }
}

void Tiers::Ask(int64_t layer, int64_t expert, bool sure) {
  if (!tight() || store_.Find(layer, expert) == nullptr) return;
  const size_t index = Index({static_cast<int32_t>(layer), static_cast<int32_t>(expert)});
  Slot& slot = slots_[index];
  const int64_t now_us = NowMicros();
  if (sure || !Wanted(index, now_us)) {
    slot.wanted_in.store(sure ? kAnyRound : rounds_[static_cast<size_t>(layer)].load(),
                         std::memory_order_relaxed);
    slot.wanted_until_us.store(now_us + absl::ToInt64Microseconds(options_.hint_life),
                               std::memory_order_relaxed);
  }
  if (slot.tier.load() != Tier::kMapped || slot.asked.exchange(true)) return;
  absl::MutexLock lock(&mutex_);
  if (asked_.size() < kMostAsked) {
    asked_.insert(sure ? asked_.begin() : asked_.end(), index);
  } else {
    slot.asked.store(false);
  }
}

void Tiers::Prefetch() {
  while (true) {
    size_t index = 0;
    {
      absl::MutexLock lock(&mutex_);
      reading_ = false;
      const auto due = [this] {
        mutex_.AssertHeld();
        return stopping_ || !asked_.empty();
      };
      mutex_.Await(absl::Condition(&due));
      if (stopping_) return;
      index = asked_.front();
      asked_.pop_front();
      reading_ = true;
      slots_[index].asked.store(false);
    }
    const ExpertId id = IdOf(index);
    const ExpertWeights* weights = store_.Find(id.layer, id.expert);
    if (weights == nullptr || !Wanted(index, NowMicros())) continue;
    // What is wrong with a file is said when the expert is used.
    if (Promote(index, memory_.bytes(*weights), /*must=*/false).value_or(false)) {
      prefetched_.fetch_add(1, std::memory_order_relaxed);
    }
  }
}

void Tiers::OnLoaded(ExpertId id) {
  if (options_.memory_bytes == 0) return;
  const uint64_t bytes = memory_.bytes(*store_.Find(id.layer, id.expert));
  bool room = false;
  {
    absl::MutexLock lock(&mutex_);
    if (PlaceOf(Index(id)) < residents_.size()) return;  // used already
    room = resident_bytes_ + bytes <= options_.memory_bytes;
    if (room) Reserve(Index(id), bytes);
  }
  if (!room) return memory_.Evict(id);
  // What is wrong is said when it is used.
  Settle(Index(id), memory_.Keep(id).ok());
}

void Tiers::OnRemoved(ExpertId id) {
  {
    absl::MutexLock lock(&mutex_);
    const size_t place = PlaceOf(Index(id));
    if (place < residents_.size()) Leave(place);
  }
  memory_.Evict(id);
}

void Tiers::EvictRest() {
  if (!tight()) return;
  for (int32_t layer = 0; layer < store_.layers(); ++layer) {
    for (int32_t expert = 0; expert < store_.experts(); ++expert) {
      const bool held = store_.Find(layer, expert) != nullptr;
      const Slot& slot = slots_[Index({layer, expert})];
      if (held && slot.tier.load() == Tier::kMapped) memory_.Evict({layer, expert});
    }
  }
}

absl::Status Tiers::Fill(const std::function<void(uint64_t done, uint64_t total)>& progress) {
  std::vector<Resident> all;
  uint64_t total = 0, done = 0;
  {
    absl::MutexLock lock(&mutex_);
    all = residents_;
    total = resident_bytes_;
  }
  for (const Resident& resident : all) {
    SY_RETURN_IF_ERROR(memory_.Keep(IdOf(resident.index)));
    done += resident.bytes;
    if (progress) progress(done, total);
  }
  return absl::OkStatus();
}

TierCounters Tiers::counters() const {
  const auto read = [](const std::atomic<uint64_t>& a) {
    return a.load(std::memory_order_relaxed);
  };
  TierCounters out{.hits = read(hits_),
                   .misses = read(misses_),
                   .stall_us = read(stall_us_),
                   .promotions = read(promotions_),
                   .demotions = read(demotions_),
                   .prefetched = read(prefetched_),
                   .bytes_promoted = read(bytes_promoted_)};
  if (options_.memory_bytes == 0) {
    out.resident = store_.count();
    out.resident_bytes = memory_.held_bytes();
    return out;
  }
  absl::MutexLock lock(&mutex_);
  out.to_read = asked_.size() + (reading_ ? 1 : 0);
  out.resident = static_cast<int64_t>(residents_.size());
  out.resident_bytes = resident_bytes_;
  return out;
}

}  // namespace switchyard::worker
