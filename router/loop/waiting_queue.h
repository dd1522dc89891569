// The sequences that wait, in the order in which they are to be admitted: by priority; inside of
// one, clients take turns by what they have been served; and those of one client by arrival.
//
// Each fair key has a counter of the tokens computed for it (Sheng et al., "Fairness in Serving
// Large Language Models", OSDI 2024); the waiting key with the least counter is next. A key that
// comes back after a pause begins where those that wait are, so that nobody saves turns up.
//
// Not thread-safe: the engine thread owns it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <string>

#include "absl/container/btree_map.h"
#include "absl/container/btree_set.h"
#include "absl/container/flat_hash_map.h"
#include "router/loop/sequence.h"

namespace switchyard::router {

class WaitingQueue {
 public:
  bool empty() const { return size_ == 0; }
  // A sequence is in it once; its request outlives that.
  void Insert(Sequence& s);
  void Erase(Sequence& s);

  // Calls visit(sequence) in the order of their turns while it returns how many tokens the sequence
  // is going to take (>= 0), which count as served for the turns after it; -1 ends the walk.
  void Visit(const std::function<int64_t(Sequence&)>& visit) const;
  // Whose turn it is; null if empty.
  Sequence* Front() const;

  // Tokens were computed for a key.
  void Charge(const std::string& fair_key, int64_t tokens);
  // A sequence of the key was admitted.
  void NoteTurn(const std::string& fair_key);

 private:
  struct ByArrival {
    bool operator()(const Sequence* a, const Sequence* b) const { return a->arrival < b->arrival; }
  };
  struct Key {
    int64_t served = 0;
    int waiting = 0;  // sequences, of all priorities
  };
  using Line = absl::btree_set<Sequence*, ByArrival>;

  void ForgetIdle();

  // By priority, the highest first; lines by fair key. No empty ones.
  absl::btree_map<int, std::map<std::string, Line>, std::greater<int>> lines_;
  absl::flat_hash_map<std::string, Key> keys_;
  int64_t turn_ = 0;  // what the key of the last turn had been served
  size_t size_ = 0;
};

}  // namespace switchyard::router
