// What sequences share: blocks of a common prefix, and the prompt of a request's choices.
#include <algorithm>
#include <utility>

#include "absl/container/inlined_vector.h"
#include "router/loop/step_loop.h"
#include "services/base/check.h"

namespace switchyard::router {

void StepLoop::ExtendDigests(Sequence& s, int64_t blocks) {
  const std::span<const int32_t> tokens = s.known_tokens();
  while (static_cast<int64_t>(s.digests.size()) < blocks) {
    const size_t first = s.digests.size() * kBlockTokens;
    const BlockDigest before =
        s.digests.empty() ? SaltDigest(s.request.spec.cache_salt) : s.digests.back();
    s.digests.push_back(NextDigest(before, tokens.subspan(first, kBlockTokens)));
  }
}

StepLoop::Prefix StepLoop::FindPrefix(Sequence& s) {
  Prefix prefix;
  const int64_t most = options_.prefix_cache ? s.skippable() / kBlockTokens : 0;
  const auto find = [&](int64_t block, int group) {
    return pool_.Find(InGroup(s.digests[static_cast<size_t>(block)], group));
  };
  absl::InlinedVector<int64_t, 2> missing(layout_.windows.size(), -1);  // the last that is
  bool hope = true;
  for (int64_t i = 0; i < most && hope; ++i) {
    ExtendDigests(s, i + 1);
    bool found = true;
    for (int g = 0; g < layout_.groups(); ++g) {
      const int window = layout_.windows[static_cast<size_t>(g)];
      int64_t& last = missing[static_cast<size_t>(g)];
      if (find(i, g) < 0) last = i;
      // The token behind block i sees none that is missing.
      found &= last < FirstBlockSeen((i + 1) * kBlockTokens, window);
      hope &= last < 0 || window > 0;
    }
    if (found) prefix.blocks = i + 1;
  }
  for (int g = 0; g < layout_.groups(); ++g) {
    const int window = layout_.windows[static_cast<size_t>(g)];
    for (int64_t i = FirstBlockSeen(prefix.blocks * kBlockTokens, window); i < prefix.blocks; ++i) {
      prefix.used += pool_.references(find(i, g)) > 0;
    }
  }
  return prefix;
}

void StepLoop::SharePrefix(Sequence& s) {
  const Prefix prefix = FindPrefix(s);
  s.tables->ShareFound(std::span(s.digests).first(static_cast<size_t>(prefix.blocks)));
  s.published = prefix.blocks;
  s.computed = prefix.blocks * kBlockTokens;
  if (options_.prefix_cache) observer_.OnPrefixLookup(s.known(), s.computed);
}

void StepLoop::SettleBlocks(Sequence& s) {
  if (options_.prefix_cache) {
    const int64_t full = std::min(s.computed, s.sound) / kBlockTokens;
    ExtendDigests(s, full);
    for (; s.published < full; ++s.published) {
      s.tables->Publish(s.published, s.digests[static_cast<size_t>(s.published)]);
    }
  }
  s.tables->DropBehind(s.computed);
}

std::vector<Sequence*> StepLoop::Release(Request& request) {
  std::vector<Sequence*> released;
  if (std::exchange(request.held, 0) == 0) return released;
  for (const auto& choice : request.choices) {
    if (choice->state != Sequence::State::kHeld) continue;
    choice->state = Sequence::State::kWaiting;
    waiting_.Insert(*choice);
    released.push_back(choice.get());
  }
  return released;
}

void StepLoop::Fork(const Sequence& leader, std::span<const float> logits, absl::Time now) {
  Request& request = leader.request;
  const int64_t length = request.prompt_len(), full = length / kBlockTokens;
  for (Sequence* sibling : Release(request)) {
    Sequence& s = *sibling;
    // A continued choice has more to compute than the prompt.
    if (s.outputs() > 0 || !HasPlaceFor(s, BlocksFor(length) - full)) return;
    Activate(s);
    s.tables->ShareWith(*leader.tables, full);
    s.tables->Grow(length);
    for (int g = 0; g < layout_.groups() && length % kBlockTokens != 0; ++g) {
      runner_.CopyBlock(leader.tables->group(g).data()[full], s.tables->group(g).data()[full]);
    }
    s.computed = length;
    s.sound = leader.sound;
    s.degraded = leader.degraded;
    s.published = leader.published;
    s.digests = leader.digests;
    s.last_step = steps_;
    SampleNext(s, logits, now);
  }
}

bool StepLoop::HasPlaceFor(const Sequence& s, int64_t blocks) const {
  const auto running = static_cast<int64_t>(running_.size());
  const int64_t need = blocks * layout_.groups() + ReserveBlocks(running, layout_.groups());
  return running < options_.max_running && pool_.free() >= need && waiting_.Front() == &s;
}

void StepLoop::Promote(Request& request) {
  for (const auto& s : request.choices) {
    if (s->state != Sequence::State::kHeld) continue;
    s->state = Sequence::State::kWaiting;
    --request.held;
    waiting_.Insert(*s);
    return;
  }
}

}  // namespace switchyard::router
