#include "services/tokenizer/stream_decoder.h"

#include "services/base/utf8.h"
#include "services/tokenizer/tokenizer_impl.h"

namespace switchyard {

StreamDecoder::StreamDecoder(const Tokenizer& tokenizer, bool skip_special)
    : tokenizer_(&tokenizer),
      skip_special_(skip_special),
      strip_left_(tokenizer.impl_->spec->decoder.strip_left_count) {}

void StreamDecoder::Append(int32_t id, std::string* out) {
  const VocabEntry* entry = tokenizer_->impl_->Entry(id);
  if (entry == nullptr || (skip_special_ && entry->special)) return;
  const DecoderSpec& decoder = tokenizer_->impl_->spec->decoder;
  if (decoder.byte_level) {
    pending_.append(entry->bytes);
    const size_t incomplete = IncompleteSuffix(pending_);
    AppendLossy(std::string_view(pending_).substr(0, pending_.size() - incomplete), out);
    pending_.erase(0, pending_.size() - incomplete);
    return;
  }
  const bool first = !started_;
  started_ = true;
  if (entry->is_byte) {
    pending_.append(entry->bytes);
    return;
  }
  EndByteRun(out);
  if (!first || decoder.dropped_in_first.empty()) return AppendStripped(entry->bytes, out);
  std::string text = entry->content;
  for (size_t at = 0; (at = text.find(decoder.dropped_in_first, at)) != std::string::npos;) {
    text.erase(at, decoder.dropped_in_first.size());
  }
  AppendStripped(text, out);
}

// Bytes of the fallback: all of the run is UTF-8, or each byte is shown as U+FFFD.
void StreamDecoder::EndByteRun(std::string* out) {
  if (pending_.empty()) return;
  if (IsValidUtf8(pending_)) {
    AppendStripped(pending_, out);
  } else {
    for (size_t i = 0; i < pending_.size(); ++i) AppendStripped(kReplacementCharacter, out);
  }
  pending_.clear();
}

void StreamDecoder::AppendStripped(std::string_view text, std::string* out) {
  const std::string& strip = tokenizer_->impl_->spec->decoder.strip_left;
  while (strip_left_ > 0 && !text.empty()) {
    if (text.substr(0, strip.size()) != strip) {
      strip_left_ = 0;
      break;
    }
    text.remove_prefix(strip.size());
    --strip_left_;
  }
  out->append(text);
}

std::string StreamDecoder::Push(int32_t id) {
  std::string out;
  Append(id, &out);
  return out;
}

std::string StreamDecoder::Push(std::span<const int32_t> ids) {
  std::string out;
  for (int32_t id : ids) Append(id, &out);
  return out;
}

std::string StreamDecoder::Flush() {
  std::string out;
  const DecoderSpec& decoder = tokenizer_->impl_->spec->decoder;
  if (decoder.byte_level) {
    AppendLossy(pending_, &out);
    pending_.clear();
  } else {
    EndByteRun(&out);
  }
  started_ = false;
  strip_left_ = decoder.strip_left_count;
  return out;
}

}  // namespace switchyard
