// The screen of `switchyard top`. Pure: the same state and size give the same lines.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "tools/cli/top_state.h"

namespace switchyard::cli {

struct TopScreen {
  int width = 80;      // columns
  int height = 0;      // lines; 0: as many as there is to show
  bool color = false;  // 256 of them, and shades; else ASCII alone
  bool keys = false;   // the last line says what they do
};

// At most `height` lines, each of at most `width` columns. What comes from the server can move no
// cursor: all but printable ASCII of it is shown as '?'.
std::vector<std::string> RenderTop(const TopState& state, const TopScreen& screen);

// Columns that a line takes: escape sequences none, a character one.
int ColumnsOf(std::string_view line);

// "12 ms", "3.4 s", "-" of none.
std::string ShortSeconds(double seconds);
// "812", "12.3k", "4.56M".
std::string ShortNumber(double value);

}  // namespace switchyard::cli
