// Frames to bytes and back, as expert.proto lays them out. Decoding trusts nothing: a frame that
// cannot be understood is an error (the stream ends), a call that can but is malformed is returned
// with `bad` set (it is answered), and what comes out otherwise needs no more checks of sizes,
// orders or ranges. Thread-safe.
#pragma once

#include <cstddef>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "services/expertwire/frame.h"

namespace switchyard::expertwire {

struct DecodeLimits {
  size_t max_frame_bytes = 64u << 20;
  size_t max_header_bytes = 8u << 20;
  size_t max_answer_bytes = 64u << 20;  // of the answer that a call asks for
  size_t max_segments = 1u << 16;
};

// Everything of a frame before its payload: length, magic, header and padding. `now` turns a call's
// deadline into what is left of it.
RowBuffer EncodePrefix(const Frame& frame, absl::Time now, RowBufferPool& pool);
// Of the body: empty where it has none.
RowBuffer PayloadOf(const Frame& frame);
// The size that a frame will have on the wire, which its sender pays in credits.
size_t EncodedBytes(const Frame& frame, const RowBuffer& prefix);

// `bytes` is the whole frame, 64-byte aligned; payloads share its memory, lists come from `pool`.
// INVALID_ARGUMENT says what is wrong.
absl::StatusOr<Frame> DecodeFrame(const RowBuffer& bytes, absl::Time now,
                                  const DecodeLimits& limits, RowBufferPool& pool);

}  // namespace switchyard::expertwire
