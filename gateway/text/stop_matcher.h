// Finds stop strings in streamed text, however the stream is cut, and holds back only what may
// still become one. The first stop string that is complete ends the text; of several that end at
// the same byte the longest counts. One stream, one thread.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace switchyard::gateway {

class StopMatcher {
 public:
  // Empty stop strings are ignored. include_stop: the text handed out ends with the stop string,
  // otherwise just before it.
  StopMatcher(const std::vector<std::string>& stops, bool include_stop);

  // The text that may be shown now. After a stop everything further is dropped.
  std::string Push(std::string_view text);
  // The text that was held back; the stream has ended without completing a stop string.
  std::string Flush();

  bool stopped() const { return matched_ >= 0; }
  // The stop string that ended the text; empty if none did.
  std::string_view matched() const;

 private:
  // A stop string with its Knuth-Morris-Pratt table.
  struct Pattern {
    std::string text;
    std::vector<uint32_t> fallback;
    uint32_t state = 0;  // bytes of it that the text now ends with
  };

  std::vector<Pattern> patterns_;
  bool include_stop_;
  int matched_ = -1;
  std::string held_;
};

}  // namespace switchyard::gateway
