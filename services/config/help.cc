#include "services/config/help.h"

#include <CLI/CLI.hpp>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"

namespace switchyard::config {
namespace {

constexpr size_t kColumns = 100;

std::string Wrapped(const std::string& text, size_t width) {
  std::string out;
  size_t column = 0;
  for (const absl::string_view word : absl::StrSplit(text, ' ')) {
    if (column > 0) {
      const bool fits = column + 1 + word.size() <= width;
      out += fits ? ' ' : '\n';
      column = fits ? column + 1 : 0;
    }
    absl::StrAppend(&out, word);
    column += word.size();
  }
  return out;
}

class HelpFormat : public CLI::Formatter {
 public:
  std::string make_option_desc(const CLI::Option* option) const override {
    return Wrapped(option->get_description(), kColumns - get_column_width());
  }
  // CLI11 ends a group with an empty line and begins the next with another.
  std::string make_help(const CLI::App* app, std::string name,
                        CLI::AppFormatMode mode) const override {
    std::string help = absl::StrReplaceAll(CLI::Formatter::make_help(app, std::move(name), mode),
                                           {{"\n\n\n", "\n\n"}});
    while (help.ends_with("\n\n")) help.pop_back();  // where no examples follow
    return help;
  }
};

}  // namespace

void FormatHelp(CLI::App& app) {
  app.formatter(std::make_shared<HelpFormat>());
  app.set_help_flag("-h,--help", "Print this help and exit");
}

}  // namespace switchyard::config
