#include "tools/cli/terminal.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "services/base/status.h"

namespace switchyard::cli {
namespace {

// A terminal that takes no more is gone, and its signal comes.
void WriteAll(std::string_view text) {
  while (!text.empty()) {
    const ssize_t wrote = write(STDOUT_FILENO, text.data(), text.size());
    if (wrote < 0 && errno == EINTR) continue;
    if (wrote <= 0) return;
    text.remove_prefix(static_cast<size_t>(wrote));
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<Terminal>> Terminal::Open(bool screen) {
  std::unique_ptr<Terminal> terminal(new Terminal);
  sigset_t mask;
  sigemptyset(&mask);
  for (const int signal : {SIGINT, SIGTERM, SIGHUP, SIGWINCH}) sigaddset(&mask, signal);
  pthread_sigmask(SIG_BLOCK, &mask, &terminal->old_mask_);
  terminal->signals_ = signalfd(-1, &mask, SFD_CLOEXEC | SFD_NONBLOCK);
  terminal->wake_ = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (terminal->signals_ < 0 || terminal->wake_ < 0) {
    return Internal("the terminal: {}", std::strerror(errno));
  }
  if (!screen || isatty(STDOUT_FILENO) == 0) return terminal;
  terminal->screen_ = true;
  if (isatty(STDIN_FILENO) != 0 && tcgetattr(STDIN_FILENO, &terminal->old_keys_) == 0) {
    termios raw = terminal->old_keys_;
    raw.c_lflag &= ~static_cast<tcflag_t>(ICANON | ECHO);
    raw.c_cc[VMIN] = 1;
    raw.c_cc[VTIME] = 0;
    raw.c_cc[VSUSP] = _POSIX_VDISABLE;  // a shell would find the screen as it is
    terminal->keys_ = tcsetattr(STDIN_FILENO, TCSANOW, &raw) == 0;
  }
  WriteAll("\x1b[?1049h\x1b[?25l\x1b[?7l");  // alternate screen, no cursor, lines do not wrap
  return terminal;
}

Terminal::~Terminal() {
  if (screen_) WriteAll("\x1b[0m\x1b[?7h\x1b[?25h\x1b[?1049l");
  if (keys_) tcsetattr(STDIN_FILENO, TCSANOW, &old_keys_);
  // One that is still pending would end the process once the mask is gone: it was heard.
  signalfd_siginfo info;
  while (signals_ >= 0 && read(signals_, &info, sizeof info) > 0) {
  }
  if (signals_ >= 0) close(signals_);
  if (wake_ >= 0) close(wake_);
  pthread_sigmask(SIG_SETMASK, &old_mask_, nullptr);
}

Terminal::Size Terminal::size() const {
  winsize size{};
  if (!screen_ || ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_col == 0) return {};
  return {.width = size.ws_col, .height = std::max<int>(1, size.ws_row)};
}

void Terminal::Show(const std::vector<std::string>& lines) {
  std::string out = screen_ ? "\x1b[H" : "";
  for (size_t i = 0; i < lines.size(); ++i) {
    // No line break behind the last one: it would scroll a full screen.
    if (i > 0) out += screen_ ? "\r\n" : "\n";
    out += lines[i];
    if (screen_) out += "\x1b[K";
  }
  out += screen_ ? "\x1b[J" : "\n\n";
  WriteAll(out);
}

Terminal::Event Terminal::Wait(absl::Duration patience, char* key) {
  pollfd fds[3] = {{.fd = signals_, .events = POLLIN, .revents = 0},
                   {.fd = wake_, .events = POLLIN, .revents = 0},
                   {.fd = keys_ ? STDIN_FILENO : -1, .events = POLLIN, .revents = 0}};
  if (poll(fds, 3, static_cast<int>(absl::ToInt64Milliseconds(patience))) <= 0) {
    return Event::kNothing;
  }
  signalfd_siginfo info{};
  if (fds[0].revents != 0 && read(signals_, &info, sizeof info) == sizeof info) {
    return info.ssi_signo == SIGWINCH ? Event::kResized : Event::kEnd;
  }
  if (fds[2].revents != 0) {
    if (read(STDIN_FILENO, key, 1) == 1) return Event::kKey;
    keys_ = false;  // closed
  }
  uint64_t woken = 0;
  if (fds[1].revents != 0) (void)!read(wake_, &woken, sizeof woken);
  return Event::kNothing;
}

void Terminal::Wake() {
  const uint64_t one = 1;
  (void)!write(wake_, &one, sizeof one);
}

}  // namespace switchyard::cli
