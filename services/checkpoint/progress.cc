#include "services/checkpoint/progress.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <utility>

namespace switchyard::checkpoint {
namespace {

constexpr double kSilent_s = 0.5;
constexpr double kRedraw_s = 0.1;

double SteadySeconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

std::string Size(uint64_t bytes) {
  const double mib = static_cast<double>(bytes) / (1 << 20);
  if (mib < 1) return fmt::format("{} KiB", (bytes + 1023) / 1024);
  return mib < 1024 ? fmt::format("{:.0f} MiB", mib) : fmt::format("{:.1f} GiB", mib / 1024);
}

std::string Left(double seconds) {
  if (seconds < 90) return fmt::format("{:.0f} s left", seconds);
  return fmt::format("{:.0f} min left", seconds / 60);
}

}  // namespace

ConsoleProgress::ConsoleProgress(std::string label)
    : ConsoleProgress(
          Options{.label = std::move(label),
                  .terminal = isatty(STDERR_FILENO) != 0,
                  .seconds = SteadySeconds,
                  .write = [](std::string_view text) { fmt::print(stderr, "{}", text); }}) {}

ConsoleProgress::ConsoleProgress(Options options)
    : options_(std::move(options)), start_s_(options_.seconds()) {}

void ConsoleProgress::Show(uint64_t done, uint64_t total) {
  const double now_s = options_.seconds();
  const bool last = done >= total;
  if (now_s - start_s_ < kSilent_s || (last && !shown_)) return;
  const double share = total == 0 ? 1.0 : static_cast<double>(done) / static_cast<double>(total);
  const auto tens = static_cast<uint64_t>(share * 10);
  const bool due =
      options_.terminal ? last || now_s - shown_s_ >= kRedraw_s : !shown_ || tens > shown_tens_;
  if (!due) return;
  const double left_s = share > 0 ? (now_s - start_s_) * (1 / share - 1) : 0;
  std::string line =
      fmt::format("{}: {} of {} ({:.0f} %){}", options_.label, Size(done), Size(total), share * 100,
                  last || share <= 0 ? std::string() : ", " + Left(left_s));
  // A terminal's line is erased to its end, since the new one may be shorter.
  options_.write(options_.terminal ? fmt::format("\r{}\033[K{}", line, last ? "\n" : "")
                                   : line + "\n");
  shown_ = true;
  shown_s_ = now_s;
  shown_tens_ = tens;
}

}  // namespace switchyard::checkpoint
