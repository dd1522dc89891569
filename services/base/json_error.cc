#include "services/base/json_error.h"

namespace switchyard {
namespace {

bool Skip(std::string_view prefix, std::string_view* text) {
  if (text->substr(0, prefix.size()) != prefix) return false;
  text->remove_prefix(prefix.size());
  return true;
}

}  // namespace

std::string NotValidJson(std::string_view what) {
  // "[json.exception.parse_error.101] parse error at line 2, column 1: syntax error …"
  if (const size_t end = what.find("] "); what.substr(0, 6) == "[json." && end != what.npos) {
    what.remove_prefix(end + 2);
  }
  const bool place = Skip("parse error at ", &what);
  if (!place) Skip("parse error: ", &what);
  return std::string(place ? "not valid JSON at " : "not valid JSON: ").append(what);
}

}  // namespace switchyard
