#include "services/base/check.h"

#include <atomic>
#include <cstdio>
#include <cstdlib>

#include "services/base/logging.h"

namespace switchyard {
namespace {
std::atomic<uint64_t> bug_count{0};
}

void CheckFailed(const char* file, int line, const char* condition) {
  std::fprintf(stderr, "%s:%d: check failed: %s\n", file, line, condition);
  std::fflush(stderr);
  std::abort();
}

void ReportBug(const char* file, int line, std::string_view name) {
  bug_count.fetch_add(1, std::memory_order_relaxed);
  log::Error("bug {} at {}:{}; going on", name, file, line);
}

uint64_t BugCount() { return bug_count.load(std::memory_order_relaxed); }

}  // namespace switchyard
