// What a thread does in a bounded wait that is expected to end within a microsecond.
#pragma once

namespace switchyard {

// Some tens of cycles that leave the core's other thread, if it has one, the room.
inline void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("isb");  // "yield" takes no time on most cores
#endif
}

}  // namespace switchyard
