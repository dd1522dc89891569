// What sequences share: blocks of a common prefix, and the prompt of a request's choices.
#include <algorithm>

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
  int64_t missing = -1;  // the last block that is not there
  for (int64_t i = 0; i < most && (missing < 0 || window_ > 0); ++i) {
    ExtendDigests(s, i + 1);
    if (pool_.Find(s.digests[static_cast<size_t>(i)]) < 0) missing = i;
    // The token behind block i sees none that is missing.
    const int64_t first = FirstBlockSeen((i + 1) * kBlockTokens, window_);
    if (missing < first) prefix = {.blocks = i + 1, .skipped = first};
  }
  for (int64_t i = prefix.skipped; i < prefix.blocks; ++i) {
    prefix.used += pool_.references(pool_.Find(s.digests[static_cast<size_t>(i)])) > 0;
  }
  return prefix;
}

void StepLoop::SharePrefix(Sequence& s) {
  const Prefix prefix = FindPrefix(s);
  s.table->Skip(prefix.skipped);
  for (int64_t i = prefix.skipped; i < prefix.blocks; ++i) {
    s.table->Share(pool_.Find(s.digests[static_cast<size_t>(i)]));
  }
  s.published = prefix.blocks;
  s.computed = prefix.blocks * kBlockTokens;
  if (options_.prefix_cache) observer_.OnPrefixLookup(s.known(), s.computed);
}

void StepLoop::SettleBlocks(Sequence& s) {
  if (options_.prefix_cache) {
    const int64_t full = s.computed / kBlockTokens;
    ExtendDigests(s, full);
    for (; s.published < full; ++s.published) {
      s.table->Publish(s.published, s.digests[static_cast<size_t>(s.published)]);
    }
  }
  s.table->DropBehind(s.computed);
}

void StepLoop::Fork(const Sequence& leader, std::span<const float> logits, absl::Time now) {
  const Request& request = leader.request;
  std::vector<Sequence*> held;
  for (const auto& choice : request.choices) {
    if (choice->state != Sequence::State::kHeld) continue;
    choice->state = Sequence::State::kWaiting;
    waiting_.Insert(*choice);
    held.push_back(choice.get());
  }
  const int64_t length = request.prompt_len(), full = length / kBlockTokens;
  for (Sequence* sibling : held) {
    Sequence& s = *sibling;
    if (!HasPlaceFor(s, BlocksFor(length) - full)) return;
    Activate(s);
    const int64_t first = std::min(leader.table->first(), full);
    s.table->Skip(first);
    for (int64_t i = first; i < full; ++i) s.table->Share(leader.table->data()[i]);
    s.table->Grow(length);
    if (length % kBlockTokens != 0) {
      runner_.CopyBlock(leader.table->data()[full], s.table->data()[full]);
    }
    s.computed = length;
    s.published = leader.published;
    s.digests = leader.digests;
    s.last_step = steps_;
    SampleNext(s, logits, now);
  }
}

bool StepLoop::HasPlaceFor(const Sequence& s, int64_t blocks) const {
  const auto running = static_cast<int64_t>(running_.size());
  // As many as admission leaves for those that decode.
  const int64_t reserve = (running + 3) / 4;
  return running < options_.max_running && pool_.free() >= blocks + reserve &&
         waiting_.Front() == &s;
}

void StepLoop::Promote(Request& request) {
  for (const auto& s : request.choices) {
    if (s->state != Sequence::State::kHeld) continue;
    s->state = Sequence::State::kWaiting;
    waiting_.Insert(*s);
    return;
  }
}

}  // namespace switchyard::router
