// Operations on texts as Python's str does them, shared by methods and filters.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace switchyard::gateway::jinja {

enum class Side { kLeft, kRight, kBoth };

// Without white space, or without the characters of `set`, at its ends.
std::string_view Strip(std::string_view text, Side side);
std::string_view Strip(std::string_view text, Side side, std::string_view set);

std::string Upper(std::string_view text);
std::string Lower(std::string_view text);
std::string Capitalize(std::string_view text);  // first character upper, the rest lower
// str.title: the first letter of each run of letters upper, the others lower.
std::string TitleMethod(std::string_view text);
// The title filter of Jinja: words are cut at white space, hyphens and brackets.
std::string TitleFilter(std::string_view text);

// Where `part` first is, npos if nowhere; in linear time whatever the texts.
size_t FindPart(std::string_view text, std::string_view part);
// count < 0: all.
std::string Replace(std::string_view text, std::string_view from, std::string_view to,
                    int64_t count);
// At most `count` cuts, < 0: all; from the right where asked.
std::vector<std::string_view> Split(std::string_view text, std::string_view separator,
                                    int64_t count, bool from_right);
// At runs of white space.
std::vector<std::string_view> SplitWords(std::string_view text, int64_t count, bool from_right);
std::vector<std::string_view> SplitLines(std::string_view text, bool keep_ends);

bool IsPythonSpace(char32_t code);

}  // namespace switchyard::gateway::jinja
