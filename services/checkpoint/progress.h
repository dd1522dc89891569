// How far a long read has come: a callback, and a reporter that shows it to a person.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

namespace switchyard::checkpoint {

// Called now and then from the thread that does the work, with done <= total, the last time with
// done == total. Where it says false, nobody wants the rest. May be null.
using ProgressFn = std::function<bool(uint64_t bytes_done, uint64_t bytes_total)>;

// Bytes and estimated time left on standard error: one line that is rewritten on a terminal, a line
// every 10 % otherwise. Silent for what takes less than half a second. Not thread-safe.
class ConsoleProgress {
 public:
  struct Options {
    std::string label;                            // "Checking weights"
    bool terminal = false;                        // rewrite the line
    std::function<double()> seconds;              // a clock that never goes back
    std::function<void(std::string_view)> write;  // where the text goes
  };

  // On standard error.
  explicit ConsoleProgress(std::string label);
  explicit ConsoleProgress(Options options);

  // true
  bool operator()(uint64_t bytes_done, uint64_t bytes_total) {
    Show(bytes_done, bytes_total);
    return true;
  }

 private:
  void Show(uint64_t bytes_done, uint64_t bytes_total);

  Options options_;
  double start_s_;
  double shown_s_ = 0;       // when the terminal's line was last written
  uint64_t shown_tens_ = 0;  // tens of per cent that were last written elsewhere
  bool shown_ = false;
};

}  // namespace switchyard::checkpoint
