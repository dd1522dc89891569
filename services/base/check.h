// Programmer's errors. SY_CHECK is always on and ends the process with the place and the message;
// SY_DCHECK is for inner loops and compiled out of release builds. Neither is ever for data that
// comes from outside: that gets an absl::Status. SY_BUG is for a surprise that is survivable: it
// counts and logs (the first time of each name) and goes on.
#pragma once

#include <cstdint>
#include <string_view>

namespace switchyard {

[[noreturn]] void CheckFailed(const char* file, int line, const char* condition);
void ReportBug(const char* file, int line, std::string_view name);
// How often SY_BUG fired in this process; exported as a metric.
uint64_t BugCount();

}  // namespace switchyard

#define SY_CHECK(condition)               \
  (static_cast<bool>(condition) ? (void)0 \
                                : ::switchyard::CheckFailed(__FILE__, __LINE__, #condition))
#ifdef NDEBUG
#define SY_DCHECK(condition) ((void)sizeof(static_cast<bool>(condition)))
#else
#define SY_DCHECK(condition) SY_CHECK(condition)
#endif
#define SY_BUG(name) ::switchyard::ReportBug(__FILE__, __LINE__, name)
