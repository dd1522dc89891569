// Frames of the expert wire from anybody: decoding never crashes, and what it lets through can be
// laid out and encoded again to the same frame.
#include <google/protobuf/stubs/logging.h>

#include <cstdlib>
#include <cstring>

#include "services/expertwire/codec.h"
#include "services/expertwire/layout.h"

namespace {

using namespace switchyard::expertwire;

RowBufferPool& Pool() {
  static RowBufferPool pool(0);  // a fresh block each time, so that reads past its end are seen
  return pool;
}

RowBuffer ToBuffer(const void* data, size_t size) {
  RowBuffer out = Pool().Take(size);
  std::memcpy(out.mutable_data(), data, size);
  return out;
}

void CheckCall(const Call& call) {
  if (!call.bad.empty()) {
    if (!call.row_index.empty() || call.segments.size() > 1u << 16) std::abort();
    return;
  }
  for (const uint32_t experts_per_group : {1u, 8u}) {
    AnswerLayout layout;
    LayOutAnswer(call.segments, call.row_index, experts_per_group, &layout);
    for (const Segment& segment : call.segments) {
      const uint32_t end = segment.result == pb::ROWS ? layout.rows : layout.sums;
      for (uint32_t i = segment.begin; i < segment.begin + segment.count; ++i) {
        if (layout.slot.at(i) >= end || call.row_index.at(i) >= call.rows) std::abort();
      }
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const bool quiet = [] {
    google::protobuf::SetLogHandler(nullptr);
    return true;
  }();
  (void)quiet;
  const absl::Time now = absl::UnixEpoch();
  const absl::StatusOr<Frame> frame = DecodeFrame(ToBuffer(data, size), now, {}, Pool());
  if (!frame.ok()) return 0;
  if (const Call* call = std::get_if<Call>(&frame->body)) {
    CheckCall(*call);
    if (!call->bad.empty()) return 0;  // its segments were not kept
  }
  const RowBuffer prefix = EncodePrefix(*frame, now, Pool()), payload = PayloadOf(*frame);
  std::string again(prefix.as<char>(), prefix.bytes());
  again.append(payload.as<char>(), payload.bytes());
  const auto twice = DecodeFrame(ToBuffer(again.data(), again.size()), now, {}, Pool());
  if (!twice.ok() || twice->body.index() != frame->body.index()) std::abort();
  return 0;
}
