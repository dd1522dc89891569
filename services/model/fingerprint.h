// The identity of a model that router and workers compare before they compute together.
#pragma once

#include <string>
#include <string_view>

#include "services/model/spec.h"

namespace switchyard {

// Every field of the spec that changes a number, as text: equal texts mean equal arithmetic. Also
// what `inspect` and a mismatch can show. Token ids of bos and eos are not in it.
std::string CanonicalText(const ModelSpec& spec);

// 128 bits in hex, over CanonicalText and the digest of the checkpoint's tensors
// (services/checkpoint/content_digest.h).
std::string ModelFingerprint(const ModelSpec& spec, std::string_view content_digest);

}  // namespace switchyard
