// Cuts a stream of server-sent events into the `data:` of each event, as the HTML standard's
// "event stream interpretation" says (fields other than data are skipped).
#pragma once

#include <string>
#include <string_view>

namespace switchyard::cli {

class SseParser {
 public:
  // Calls event(std::string_view data) for each event that is complete. Returns false as soon as an
  // event's callback does.
  template <typename Event>
  bool Feed(std::string_view bytes, Event&& event) {
    buffer_ += bytes;
    size_t begin = 0;
    for (size_t end; (end = buffer_.find('\n', begin)) != std::string::npos; begin = end + 1) {
      std::string_view line(buffer_.data() + begin, end - begin);
      if (!line.empty() && line.back() == '\r') line.remove_suffix(1);
      if (!line.empty()) {
        AddLine(line);
        continue;
      }
      if (!has_data_) continue;
      has_data_ = false;
      const std::string data = std::move(data_);
      data_.clear();
      if (!event(std::string_view(data))) return false;
    }
    buffer_.erase(0, begin);
    return true;
  }

 private:
  void AddLine(std::string_view line) {
    constexpr std::string_view kField = "data:";
    if (line.substr(0, kField.size()) != kField) return;
    line.remove_prefix(kField.size());
    if (!line.empty() && line.front() == ' ') line.remove_prefix(1);
    if (has_data_) data_ += '\n';
    data_ += line;
    has_data_ = true;
  }

  std::string buffer_;
  std::string data_;
  bool has_data_ = false;
};

}  // namespace switchyard::cli
