#include "services/config/units.h"

#include <charconv>
#include <cmath>
#include <limits>
#include <optional>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "services/base/status.h"

namespace switchyard::config {
namespace {

struct Unit {
  std::string_view name;
  double bytes;
};
constexpr double kKi = 1024.0;
constexpr Unit kUnits[] = {{"b", 1},
                           {"kb", 1e3},
                           {"mb", 1e6},
                           {"gb", 1e9},
                           {"tb", 1e12},
                           {"kib", kKi},
                           {"mib", kKi* kKi},
                           {"gib", kKi* kKi* kKi},
                           {"tib", kKi* kKi* kKi* kKi}};

// An id, or a number of parts.
std::optional<int> Number(std::string_view text) {
  text = ToStd(absl::StripAsciiWhitespace(ToAbsl(text)));
  int value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < 0) return std::nullopt;
  return value;
}

}  // namespace

absl::StatusOr<int64_t> ParseBytes(std::string_view text) {
  const size_t digits = text.find_first_not_of("0123456789.");
  const std::string_view number = text.substr(0, digits);
  std::string unit(digits == std::string_view::npos ? std::string_view() : text.substr(digits));
  absl::StripAsciiWhitespace(&unit);
  absl::AsciiStrToLower(&unit);
  double value = 0;
  if (!number.empty() && absl::SimpleAtod(ToAbsl(number), &value)) {
    if (unit.empty()) {
      if (value == 0) return 0;
      return InvalidArgument("\"{}\" has no unit; give a number and a unit, such as 4GiB or 512MiB",
                             text);
    }
    for (const Unit& known : kUnits) {
      if (unit != known.name) continue;
      const double bytes = std::floor(value * known.bytes);
      if (bytes >= 9e18) return InvalidArgument("\"{}\" is too large", text);
      return static_cast<int64_t>(bytes);
    }
  }
  return InvalidArgument("\"{}\" is not a size; give a number and a unit, such as 4GiB or 512MiB",
                         text);
}

std::string FormatBytes(int64_t bytes) {
  constexpr std::string_view kNames[] = {"bytes", "KiB", "MiB", "GiB", "TiB"};
  double value = static_cast<double>(bytes);
  size_t unit = 0;
  while (std::abs(value) >= kKi && unit + 1 < std::size(kNames)) value /= kKi, ++unit;
  return unit == 0 ? fmt::format("{} bytes", bytes) : fmt::format("{:.1f} {}", value, kNames[unit]);
}

absl::StatusOr<absl::Duration> ParseDuration(std::string_view text) {
  absl::Duration duration;
  if (!absl::ParseDuration(ToAbsl(text), &duration) || duration < absl::ZeroDuration()) {
    return InvalidArgument(
        "\"{}\" is not a duration; give a number and a unit, such as 30s or 250ms", text);
  }
  return duration;
}

absl::Status CheckAddress(std::string_view text) {
  if (text.substr(0, 5) == "unix:") {
    // sockaddr_un holds 107 characters and a zero.
    if (text.size() > 5 && text.size() <= 5 + 107) return absl::OkStatus();
    return InvalidArgument("\"{}\" is not an address; a unix: path has 1 to 107 characters", text);
  }
  const size_t colon = text.rfind(':');
  int port = -1;
  const bool host_ok = colon != std::string_view::npos && colon > 0 &&
                       (text.substr(0, colon).find(':') == std::string_view::npos ||
                        (text.front() == '[' && text[colon - 1] == ']'));
  if (!host_ok || !absl::SimpleAtoi(ToAbsl(text.substr(colon + 1)), &port) || port < 0 ||
      port > 65535) {
    return InvalidArgument(
        "\"{}\" is not an address; give HOST:PORT (port 0 to 65535) or unix:PATH", text);
  }
  return absl::OkStatus();
}

absl::Status CheckPeerAddress(std::string_view text) {
  constexpr std::string_view kDns = "dns:";
  const bool dns = text.substr(0, kDns.size()) == kDns;
  const std::string_view address = dns ? text.substr(kDns.size()) : text;
  if (CheckAddress(address).ok() && !(dns && address.substr(0, 5) == "unix:")) {
    return absl::OkStatus();
  }
  return InvalidArgument(
      "\"{}\" is not an address; give HOST:PORT (port 0 to 65535), dns:NAME:PORT or unix:PATH",
      text);
}

absl::StatusOr<ExpertRanges> ParseExpertRanges(std::string_view text) {
  text = ToStd(absl::StripAsciiWhitespace(ToAbsl(text)));
  ExpertRanges out;
  if (const size_t slash = text.find('/'); slash != std::string_view::npos) {
    const auto part = Number(text.substr(0, slash)), parts = Number(text.substr(slash + 1));
    if (!part || !parts || *parts < 1 || *part >= *parts) {
      return InvalidArgument("\"{}\" is no part; in i/n, i runs from 0 to n - 1, such as 0/3",
                             text);
    }
    out.part = *part, out.parts = *parts;
    return out;
  }
  for (std::string_view rest = text; !rest.empty();) {
    const size_t comma = rest.find(',');
    const std::string_view item = rest.substr(0, comma);
    rest = comma == std::string_view::npos ? "" : rest.substr(comma + 1);
    const size_t dash = item.find('-');
    const auto first = Number(item.substr(0, dash));
    const auto last = dash == std::string_view::npos ? first : Number(item.substr(dash + 1));
    if (!first || !last || *first > *last) {
      return InvalidArgument("\"{}\" is no list of ids and ranges (0-63,70) and no part (0/3){}",
                             text, item == text ? "" : fmt::format("; see \"{}\"", item));
    }
    out.ranges.push_back({*first, *last});
  }
  return out;
}

}  // namespace switchyard::config
