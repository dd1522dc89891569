#include "tools/cli/top_view.h"

#include <algorithm>
#include <cmath>
#include <iterator>

#include "fmt/format.h"
#include "services/config/units.h"

namespace switchyard::cli {
namespace {

constexpr std::string_view kBold = "\x1b[1m", kDim = "\x1b[2m", kBad = "\x1b[1;31m",
                           kPlain = "\x1b[0m";
// Load of an expert over the mean of its layer: cold, to four times the mean and above.
constexpr double kSteps[] = {0, 0.25, 0.5, 1, 1.5, 2, 4};
constexpr int kColors[] = {234, 18, 25, 31, 71, 148, 214, 196};  // of the 256
constexpr std::string_view kShades = " .:-=+*#";
constexpr int kHottest = 8;
constexpr int kLayerColumns = 9, kImbalanceColumns = 14;  // beside a row of the map

// A line as it grows, cut off at the screen's width.
class Line {
 public:
  explicit Line(const TopScreen& screen) : screen_(screen) {}

  Line& Add(std::string_view text, std::string_view style = {}) {
    const bool styled = screen_.color && !style.empty();
    if (styled) out_ += style;
    for (const char c : text) {
      if (columns_ >= screen_.width) break;
      out_ += c >= ' ' && c <= '~' ? c : '?';
      ++columns_;
    }
    if (styled) out_ += kPlain;
    return *this;
  }
  // Blanks up to a column.
  Line& To(int column) {
    while (columns_ < std::min(column, screen_.width)) out_ += ' ', ++columns_;
    return *this;
  }
  // One column whose shade says how far `load` is from 1.
  void AddCell(double load) {
    if (columns_ >= screen_.width) return;
    const auto step = static_cast<size_t>(
        std::lower_bound(std::begin(kSteps), std::end(kSteps), load) - std::begin(kSteps));
    if (screen_.color) {
      out_ += fmt::format("\x1b[48;5;{}m ", kColors[step]);
    } else {
      out_ += kShades[step];
    }
    ++columns_;
  }
  void EndCells() {
    if (screen_.color) out_ += kPlain;
  }
  std::string Take() { return std::move(out_); }

 private:
  const TopScreen& screen_;
  std::string out_;
  int columns_ = 0;
};

std::string Latency(const std::optional<double>& seconds) {
  return seconds.has_value() ? ShortSeconds(*seconds) : "-";
}

class Renderer {
 public:
  Renderer(const TopState& state, const TopScreen& screen) : state_(state), screen_(screen) {}

  std::vector<std::string> Render() {
    Header();
    Gateway();
    Routers();
    Workers();
    // The map takes what is left over, and where that is nothing a line says so.
    const size_t footer = screen_.keys ? 1 : 0;
    const size_t left = screen_.height == 0 ? state_.layers.size() + 16
                        : lines_.size() + footer < static_cast<size_t>(screen_.height)
                            ? static_cast<size_t>(screen_.height) - lines_.size() - footer
                            : 0;
    Experts(left);
    if (screen_.height > 0 && lines_.size() + footer > static_cast<size_t>(screen_.height)) {
      lines_.resize(
          static_cast<size_t>(std::max<int>(0, screen_.height - static_cast<int>(footer))));
    }
    if (screen_.keys) {
      Put(Line(screen_)
              .Add("q", kBold)
              .Add(" quits  ")
              .Add("w", kBold)
              .Add(fmt::format(" changes the window ({:.0f} s)", state_.window)));
    }
    return std::move(lines_);
  }

 private:
  void Put(Line& line) { lines_.push_back(line.Take()); }
  void Put(Line&& line) { lines_.push_back(line.Take()); }
  Line New() const { return Line(screen_); }

  void Header() {
    Line line = New();
    line.Add("switchyard top", kBold).Add(" - ");
    if (!state_.model.empty()) line.Add(state_.model, kBold).Add(" at ");
    Put(line.Add(state_.url));
    if (!state_.lost.empty()) {
      Put(New().Add("no answer: ", kBad).Add(state_.lost).Add("; trying again"));
    } else if (!state_.missing.empty()) {
      Put(New().Add("not ready: ", kBad).Add(state_.missing));
    }
  }

  void Gateway() {
    const TopGateway& g = state_.gateway;
    Put(New()
            .Add("gateway  ")
            .Add(ShortNumber(g.tokens), kBold)
            .Add(" tokens/s  ")
            .Add(fmt::format(
                "{:.0f} open  {} requests/s  first token p50 {} p99 {}  token gap p50 {} p99 {}",
                g.open, ShortNumber(g.requests), Latency(g.first_token.p50),
                Latency(g.first_token.p99), Latency(g.inter_token.p50),
                Latency(g.inter_token.p99))));
    if (g.degraded > 0 || g.resumed > 0) {
      Put(New().Add(fmt::format("         {} responses/s degraded, {} streams/s resumed elsewhere",
                                ShortNumber(g.degraded), ShortNumber(g.resumed)),
                    kBad));
    }
  }

  // Of the first column of both tables.
  int NameColumns() const {
    size_t longest = 8;
    for (const TopRouter& r : state_.routers) longest = std::max(longest, r.id.size());
    for (const TopWorker& w : state_.workers) longest = std::max(longest, w.address.size());
    return static_cast<int>(std::min<size_t>(longest, 32)) + 2;
  }

  void Routers() {
    const int name = NameColumns();
    Put(New()
            .Add("router", kDim)
            .To(name)
            .Add(fmt::format("{:<11}{:>8}{:>8}{:>6}{:>8}{:>9}{:>7}{:>8}{:>9}{:>8}{:>7}{:>9}{:>7}",
                             "state", "running", "waiting", "kv %", "rows/s", "epoch", "moving",
                             "orphans", "retry/s", "hedge/s", "won/s", "parked/s", "lost/s"),
                 kDim));
    for (const TopRouter& r : state_.routers) {
      const std::string epoch = r.epoch == r.epoch_in_use
                                    ? fmt::format("{}", r.epoch)
                                    : fmt::format("{} -> {}", r.epoch_in_use, r.epoch);
      Line line = New();
      line.Add(Short(r.id, name)).To(name);
      line.Add(fmt::format("{:<11}", r.state), r.state == "up" ? "" : kBad);
      line.Add(fmt::format("{:>8}{:>8}{:>6.0f}{:>8}", r.running, r.waiting, 100 * r.kv_used,
                           ShortNumber(r.rows)));
      line.Add(fmt::format("{:>9}{:>7}", epoch, r.moving));
      line.Add(fmt::format("{:>8}", r.orphans), r.orphans > 0 ? kBad : "");
      line.Add(fmt::format("{:>9}{:>8}{:>7}{:>9}", ShortNumber(r.retried), ShortNumber(r.hedged),
                           ShortNumber(r.hedges_won), ShortNumber(r.parked)));
      Put(line.Add(fmt::format("{:>7}", ShortNumber(r.lost)), r.lost > 0 ? kBad : ""));
    }
    if (state_.routers.empty()) Put(New().Add("none answers", kBad));
  }

  // Where the screen is small, as many as leave room for the experts.
  void Workers() {
    const int name = NameColumns();
    Put(New()
            .Add("worker", kDim)
            .To(name)
            .Add(fmt::format("{:<11}{:>8}{:>8}{:>8}{:>8}{:>6}{:>11}{:>8}  {}", "state", "rows/s",
                             "p50", "p99", "experts", "epoch", "free", "ejected", "node, zone"),
                 kDim));
    const size_t room = screen_.height == 0 ? state_.workers.size()
                                            : static_cast<size_t>(std::max(3, screen_.height / 3));
    const size_t shown = state_.workers.size() <= room ? state_.workers.size() : room - 1;
    // Those in trouble first, then by load.
    std::vector<const TopWorker*> order;
    for (const TopWorker& w : state_.workers) order.push_back(&w);
    if (shown < order.size()) {
      std::ranges::stable_sort(order, [](const TopWorker* a, const TopWorker* b) {
        const bool a_bad = a->state != "up" || a->ejected, b_bad = b->state != "up" || b->ejected;
        return a_bad != b_bad ? a_bad : a->rows > b->rows;
      });
    }
    for (size_t i = 0; i < shown; ++i) Worker(*order[i], name);
    if (shown < order.size()) {
      Put(New().Add(fmt::format("and {} more", order.size() - shown), kDim));
    }
  }

  void Worker(const TopWorker& w, int name) {
    const std::string state = w.state.substr(0, w.state.find(':'));
    const std::string free = w.free_bytes.has_value()
                                 ? config::FormatBytes(static_cast<int64_t>(
                                       std::min<uint64_t>(*w.free_bytes, INT64_MAX)))
                                 : "-";
    Line line = New();
    line.Add(Short(w.address, name)).To(name);
    line.Add(fmt::format("{:<11}", state), state == "up" ? "" : kBad);
    line.Add(fmt::format("{:>8}{:>8}{:>8}{:>8}{:>6}{:>11}", ShortNumber(w.rows),
                         ShortSeconds(w.p50), ShortSeconds(w.p99), w.experts, w.epoch, free));
    line.Add(fmt::format("{:>8}", w.ejected         ? "now"
                                  : w.ejections > 0 ? fmt::format("{}x", w.ejections)
                                                    : "-"),
             w.ejected ? kBad : "");
    Put(line.Add("  ").Add(w.node).Add(w.zone.empty() ? "" : ", ").Add(w.zone));
  }

  std::string Short(const std::string& name, int columns) const {
    const auto room = static_cast<size_t>(columns - 2);
    return name.size() <= room ? name : name.substr(0, room - 1) + "~";
  }

  void Experts(size_t room) {
    if (state_.layers.empty() || room < 2) return;
    double worst = 0, workers = 0;
    for (const TopLayer& layer : state_.layers) {
      worst = std::max(worst, layer.expert_imbalance);
      workers = std::max(workers, layer.worker_imbalance);
    }
    int experts = 0;
    for (const TopExpert& e : state_.experts) experts = std::max(experts, e.expert + 1);
    const int map = screen_.width - kLayerColumns - kImbalanceColumns;
    Put(New()
            .Add("experts", kDim)
            .Add(fmt::format(
                "  {} a layer; rows over {:.0f} s; most over mean: {:.2f} of experts, {:.2f} of "
                "workers, in the worst layer",
                experts, state_.window, worst, workers)));
    --room;
    const bool list = room >= 6;
    if (map >= 8) HeatMap(list ? room - 1 : room, map, experts);
    if (list) Hottest();
  }

  // Layers by experts, several of them a line or a column where the screen is small: the most
  // loaded one shows.
  void HeatMap(size_t room, int columns, int experts) {
    const size_t layers = state_.layers.size();
    const size_t per_line = (layers + room - 1) / std::max<size_t>(room, 1);
    // As many experts in each cell, so that none looks hotter for being one of more.
    const int per_cell = std::max(1, (experts + columns - 1) / columns);
    const int cells = (experts + per_cell - 1) / per_cell;
    auto expert = state_.experts.begin();
    for (size_t first = 0; first < layers; first += per_line) {
      const size_t end = std::min(layers, first + per_line);
      std::vector<double> most(static_cast<size_t>(cells));
      double imbalance = 0;
      for (size_t l = first; l < end; ++l) {
        const int layer = state_.layers[l].layer;
        while (expert != state_.experts.end() && expert->layer < layer) ++expert;
        const auto begin = expert;
        double sum = 0;
        for (; expert != state_.experts.end() && expert->layer == layer; ++expert)
          sum += expert->rows;
        const double mean = sum / std::max<double>(1, static_cast<double>(expert - begin));
        for (auto e = begin; e != expert && mean > 0; ++e) {
          if (e->expert < 0) continue;
          const auto at = static_cast<size_t>(e->expert / per_cell);
          most[at] = std::max(most[at], e->rows / mean);
        }
        imbalance = std::max(imbalance, state_.layers[l].expert_imbalance);
      }
      MapLine(state_.layers[first].layer, state_.layers[end - 1].layer, most, imbalance);
    }
  }

  void MapLine(int first, int last, const std::vector<double>& most, double imbalance) {
    Line line = New();
    line.Add(first == last ? fmt::format("{:>7}", first)
                           : fmt::format("{:>7}", fmt::format("{}-{}", first, last)))
        .To(kLayerColumns);
    for (const double load : most) line.AddCell(load);
    line.EndCells();
    Put(line.Add(imbalance > 0 ? fmt::format("{:>8.2f}", imbalance) : fmt::format("{:>8}", "-")));
  }

  void Hottest() {
    std::vector<const TopExpert*> order;
    for (const TopExpert& e : state_.experts) order.push_back(&e);
    const size_t shown = std::min<size_t>(kHottest, order.size());
    std::partial_sort(order.begin(), order.begin() + static_cast<ptrdiff_t>(shown), order.end(),
                      [](const TopExpert* a, const TopExpert* b) {
                        return a->rows != b->rows     ? a->rows > b->rows
                               : a->layer != b->layer ? a->layer < b->layer
                                                      : a->expert < b->expert;
                      });
    Line line = New();
    line.Add("hottest", kDim);
    for (size_t i = 0; i < shown && order[i]->rows > 0; ++i) {
      line.Add(fmt::format("  {}/{} {}/s x{}", order[i]->layer, order[i]->expert,
                           ShortNumber(order[i]->rows), order[i]->replicas));
    }
    Put(line);
  }

  const TopState& state_;
  const TopScreen& screen_;
  std::vector<std::string> lines_;
};

}  // namespace

std::vector<std::string> RenderTop(const TopState& state, const TopScreen& screen) {
  return Renderer(state, screen).Render();
}

int ColumnsOf(std::string_view line) {
  int columns = 0;
  for (size_t i = 0; i < line.size(); ++i) {
    if (line[i] == '\x1b') {
      i = std::min(line.find('m', i), line.size());
    } else {
      ++columns;
    }
  }
  return columns;
}

std::string ShortSeconds(double seconds) {
  if (!(seconds > 0)) return "-";
  if (seconds < 1e-3) return fmt::format("{:.0f} us", seconds * 1e6);
  if (seconds < 1e-2) return fmt::format("{:.1f} ms", seconds * 1e3);
  if (seconds < 1) return fmt::format("{:.0f} ms", seconds * 1e3);
  return fmt::format("{:.1f} s", seconds);
}

std::string ShortNumber(double value) {
  if (!(value > 0)) return "0";
  if (value < 10) return fmt::format("{:.1f}", value);
  if (value < 1e4) return fmt::format("{:.0f}", value);
  if (value < 1e6) return fmt::format("{:.1f}k", value / 1e3);
  if (value < 1e9) return fmt::format("{:.1f}M", value / 1e6);
  return fmt::format("{:.1e}", value);
}

}  // namespace switchyard::cli
