// How --help of every program looks.
#pragma once

namespace CLI {
class App;
}  // namespace CLI

namespace switchyard::config {

// Lines end by column 100 where words allow it, one empty line stands between parts. Commands that
// are added to `app` later look the same.
void FormatHelp(CLI::App& app);

}  // namespace switchyard::config
