#include "tools/cli/quantize.h"

#include <fmt/format.h>

#include <iostream>
#include <nlohmann/json.hpp>

#include "services/base/file.h"
#include "services/base/status.h"
#include "services/config/units.h"

namespace switchyard::cli {
namespace {

using quantize::QuantizeReport;

std::string Percent(double share) {
  return share == 0 ? fmt::format("{:>10}", "-") : fmt::format("{:>8.3f} %", 100 * share);
}

std::string Sizes(uint64_t before, uint64_t after) {
  const double less =
      before == 0 ? 0 : 100 - 100.0 * static_cast<double>(after) / static_cast<double>(before);
  return fmt::format("{} -> {} ({:.1f} % less)", config::FormatBytes(static_cast<int64_t>(before)),
                     config::FormatBytes(static_cast<int64_t>(after)), less);
}

std::string Text(const QuantizeReport& r) {
  std::string out = fmt::format("{:>5} {:>10} {:>10} {:>10}   relative error of the weights\n",
                                "layer", "attention", "mlp", "experts");
  for (const QuantizeReport::Layer& layer : r.layers) {
    out += fmt::format("{:>5} {} {} {}\n", layer.layer, Percent(layer.attention),
                       Percent(layer.mlp), Percent(layer.experts));
  }
  if (r.group_size > 0) out += fmt::format("groups         of {}\n", r.group_size);
  out += fmt::format("experts        {}\n", Sizes(r.expert_bytes_before, r.expert_bytes_after));
  out += fmt::format("all weights    {}\n", Sizes(r.bytes_before, r.bytes_after));
  if (!r.not_read_back.empty()) {
    out += fmt::format("perplexity     {:.4f}; not known afterwards: {}\n", r.perplexity_before,
                       r.not_read_back);
  } else if (r.predicted_tokens > 0) {
    out += fmt::format("perplexity     {:.4f} -> {:.4f} ({:+.2f} %) on {} tokens\n",
                       r.perplexity_before, r.perplexity_after,
                       100 * (r.perplexity_after / r.perplexity_before - 1), r.predicted_tokens);
  }
  return out;
}

std::string JsonText(const QuantizeReport& r, const std::string& scheme) {
  nlohmann::ordered_json layers = nlohmann::ordered_json::array();
  for (const QuantizeReport::Layer& layer : r.layers) {
    layers.push_back({{"layer", layer.layer},
                      {"attention_error", layer.attention},
                      {"mlp_error", layer.mlp},
                      {"experts_error", layer.experts}});
  }
  nlohmann::ordered_json out = {{"scheme", scheme},
                                {"layers", layers},
                                {"bytes_before", r.bytes_before},
                                {"bytes_after", r.bytes_after},
                                {"expert_bytes_before", r.expert_bytes_before},
                                {"expert_bytes_after", r.expert_bytes_after}};
  if (r.group_size > 0) out["group_size"] = r.group_size;
  if (r.predicted_tokens > 0) {
    out["predicted_tokens"] = r.predicted_tokens;
    out["perplexity_before"] = r.perplexity_before;
    if (r.not_read_back.empty()) out["perplexity_after"] = r.perplexity_after;
  }
  return out.dump(2) + "\n";
}

}  // namespace

absl::Status RunQuantize(QuantizeCommand command) {
  SY_ASSIGN_OR_RETURN(command.options.scheme, quantize::SchemeFrom(command.scheme));
  SY_ASSIGN_OR_RETURN(const QuantizeReport report, quantize::Quantize(command.options));
  const std::string json = JsonText(report, command.scheme);
  if (command.json_file == "-") {
    std::cout << json;
    return absl::OkStatus();
  }
  std::cout << Text(report);
  if (command.json_file.empty()) return absl::OkStatus();
  return WriteFile(command.json_file, json);
}

}  // namespace switchyard::cli
