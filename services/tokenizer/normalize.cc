#include "services/tokenizer/normalize.h"

#include <unicode/bytestream.h>
#include <unicode/normalizer2.h>
#include <unicode/stringpiece.h>

#include <limits>
#include <utility>

#include "services/base/status.h"
#include "services/base/utf8.h"

namespace switchyard {
namespace {

const icu::Normalizer2* InstanceOf(UnicodeForm form, UErrorCode* error) {
  switch (form) {
    case UnicodeForm::kNfc:
      return icu::Normalizer2::getNFCInstance(*error);
    case UnicodeForm::kNfd:
      return icu::Normalizer2::getNFDInstance(*error);
    case UnicodeForm::kNfkc:
      return icu::Normalizer2::getNFKCInstance(*error);
    case UnicodeForm::kNfkd:
      return icu::Normalizer2::getNFKDInstance(*error);
  }
  return nullptr;
}

absl::StatusOr<std::string> Apply(const UnicodeStep& step, std::string text, RegexScratch*) {
  if (text.size() > static_cast<size_t>(std::numeric_limits<int32_t>::max() / 4)) {
    return InvalidArgument("text of {} bytes is too long to normalise", text.size());
  }
  UErrorCode error = U_ZERO_ERROR;
  const icu::Normalizer2* normalizer = InstanceOf(step.form, &error);
  const icu::StringPiece piece(text.data(), static_cast<int32_t>(text.size()));
  if (U_FAILURE(error)) return Internal("ICU: {}", u_errorName(error));
  if (normalizer->isNormalizedUTF8(piece, error) && U_SUCCESS(error)) return text;
  std::string out;
  icu::StringByteSink<std::string> sink(&out);
  normalizer->normalizeUTF8(0, piece, sink, nullptr, error);
  if (U_FAILURE(error)) return Internal("ICU: {}", u_errorName(error));
  return out;
}

absl::StatusOr<std::string> Apply(const PrependStep& step, std::string text, RegexScratch*) {
  if (!text.empty()) text.insert(0, step.text);
  return text;
}

absl::StatusOr<std::string> Apply(const ReplaceStep& step, std::string text,
                                  RegexScratch* scratch) {
  std::string out;
  size_t copied = 0;
  for (size_t from = 0; from <= text.size();) {
    SY_ASSIGN_OR_RETURN(const RegexMatch match, step.pattern.Find(text, from, scratch));
    if (!match.found) break;
    out.append(text, copied, match.begin - copied).append(step.content);
    copied = match.end;
    from = match.end;
    if (match.begin == match.end) {  // an empty match: go on behind the next character
      from += from < text.size() ? FirstUtf8(std::string_view(text).substr(from)).size : 1;
    }
  }
  out.append(text, copied);
  return out;
}

}  // namespace

absl::StatusOr<std::string> Normalizer::Normalize(std::string_view text,
                                                  RegexScratch* scratch) const {
  std::string current(text);
  for (const NormalizeStep& step : steps_) {
    auto result =
        std::visit([&](const auto& s) { return Apply(s, std::move(current), scratch); }, step);
    if (!result.ok()) return result.status();
    current = std::move(*result);
  }
  return current;
}

}  // namespace switchyard
