// A terminal that is taken over for a while: the alternate screen without a cursor, keys as they
// are pressed, and signals as events. All of it is given back by the destructor.
//
// Of one thread; make it before others are started, so that they leave the signals to it. At most
// one of a process.
#pragma once

#include <termios.h>

#include <csignal>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace switchyard::cli {

class Terminal {
 public:
  struct Size {
    int width = 80, height = 24;
  };
  // Without `screen`, or where standard output is no terminal, it only sees signals.
  static absl::StatusOr<std::unique_ptr<Terminal>> Open(bool screen);
  ~Terminal();
  Terminal(const Terminal&) = delete;
  Terminal& operator=(const Terminal&) = delete;

  bool is_screen() const { return screen_; }
  bool has_keys() const { return keys_; }
  Size size() const;
  // Replaces what is on the screen, or prints it.
  void Show(const std::vector<std::string>& lines);

  enum class Event { kNothing, kKey, kResized, kEnd };
  // What happens first, at the latest after `patience`; kEnd: a signal asks to. `key` is that of
  // kKey. Wake() from any thread ends it early.
  Event Wait(absl::Duration patience, char* key);
  void Wake();

 private:
  Terminal() = default;

  int signals_ = -1, wake_ = -1;  // a signalfd, an eventfd
  sigset_t old_mask_{};
  bool screen_ = false, keys_ = false;
  termios old_keys_{};
};

}  // namespace switchyard::cli
