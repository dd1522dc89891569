#include "router/loop/waiting_queue.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "services/base/check.h"

namespace switchyard::router {
namespace {

// Keys remembered; one more, and those of which nothing waits are forgotten.
constexpr size_t kKeysMax = 4096;

}  // namespace

void WaitingQueue::Insert(Sequence& s) {
  const std::string& name = s.request.spec.fair_key;
  if (keys_.size() >= kKeysMax && !keys_.contains(name)) ForgetIdle();
  Key& key = keys_[name];
  if (key.waiting++ == 0) key.served = std::max(key.served, turn_);
  SY_CHECK(lines_[s.request.spec.priority][name].insert(&s).second);
  ++size_;
}

void WaitingQueue::Erase(Sequence& s) {
  const std::string& name = s.request.spec.fair_key;
  const auto level = lines_.find(s.request.spec.priority);
  SY_CHECK(level != lines_.end());
  const auto line = level->second.find(name);
  SY_CHECK(line != level->second.end() && line->second.erase(&s) == 1);
  if (line->second.empty()) level->second.erase(line);
  if (level->second.empty()) lines_.erase(level);
  --keys_[name].waiting;
  --size_;
}

void WaitingQueue::Visit(const std::function<int64_t(Sequence&)>& visit) const {
  struct Turn {
    int64_t served;
    Line::const_iterator next, end;
  };
  // The least served on top; of equals the one that came first.
  const auto later = [](const Turn& a, const Turn& b) {
    return a.served != b.served ? a.served > b.served : (*a.next)->arrival > (*b.next)->arrival;
  };
  absl::flat_hash_map<std::string, int64_t> taken;  // by turns of higher priorities
  std::vector<Turn> turns;
  for (const auto& [priority, lines] : lines_) {
    turns.clear();
    for (const auto& [name, line] : lines) {
      turns.push_back({keys_.at(name).served + taken[name], line.begin(), line.end()});
    }
    std::make_heap(turns.begin(), turns.end(), later);
    while (!turns.empty()) {
      std::pop_heap(turns.begin(), turns.end(), later);
      Turn& turn = turns.back();
      Sequence& s = **turn.next;
      const int64_t tokens = visit(s);
      if (tokens < 0) return;
      taken[s.request.spec.fair_key] += tokens;
      turn.served += tokens;
      if (++turn.next == turn.end) {
        turns.pop_back();
      } else {
        std::push_heap(turns.begin(), turns.end(), later);
      }
    }
  }
}

Sequence* WaitingQueue::Front() const {
  Sequence* front = nullptr;
  Visit([&](Sequence& s) {
    front = &s;
    return int64_t{-1};
  });
  return front;
}

void WaitingQueue::Charge(const std::string& fair_key, int64_t tokens) {
  keys_[fair_key].served += tokens;
}

void WaitingQueue::NoteTurn(const std::string& fair_key) {
  turn_ = std::max(turn_, keys_[fair_key].served);
}

void WaitingQueue::ForgetIdle() {
  absl::erase_if(keys_, [](const auto& entry) { return entry.second.waiting == 0; });
}

}  // namespace switchyard::router
