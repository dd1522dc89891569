// Frames through the plugin's expert feed-forward (abi.h): against float64, and for the same bits
// in any company.
#include <algorithm>
#include <cmath>
#include <deque>
#include <numeric>

#include "services/kernels/cuda/expert_block.h"
#include "tools/bench/gpu_bench/check.h"
#include "tools/bench/gpu_bench/random_matrix.h"

namespace switchyard::gpu_bench {
namespace {

using cuda::Format;

struct Form {
  const char* name;
  Format format;
  int group = 0, group_rows = 1;
  bool zeros = false, clamped = false;  // clamped: with biases, as gpt-oss has it
};
constexpr Form kForms[] = {
    {"bf16", Format::kBf16},
    {"bf16, biases", Format::kBf16, 0, 1, false, true},
    {"e4m3, 128 x 128", Format::kE4M3, 128, 8},
    {"e4m3, a scale a row", Format::kE4M3, 128, 1},
    {"e4m3, 32", Format::kE4M3, 32, 1},
    {"i8, 128", Format::kI8, 128, 1},
    {"i4, 128, zeros", Format::kI4, 128, 1, true},
    {"i4, 32", Format::kI4, 32, 1},
    {"e2m1, 32, biases", Format::kE2M1, 32, 1, false, true},
};

struct Pair {
  int row = 0, expert = 0;
};

// Every 128 numbers with the scale that makes the largest 448, the largest of e4m3.
void RoundToE4M3(std::vector<double>& values) {
  for (size_t first = 0; first < values.size(); first += 128) {
    const size_t end = std::min(values.size(), first + 128);
    double most = 0;
    for (size_t i = first; i < end; ++i) most = std::max(most, std::fabs(values[i]));
    const double scale = most > 0 ? most / 448 : 1;
    for (size_t i = first; i < end; ++i) {
      int exponent = 0;
      std::frexp(values[i] / scale, &exponent);  // m · 2^exponent, m in [1/2, 1): four bits of it
      const double step = std::ldexp(1.0, std::max(exponent - 4, -9));
      values[i] = std::nearbyint(values[i] / scale / step) * step * scale;
    }
  }
}

class Layer {
 public:
  Layer(Check& check, const Form& form, int hidden, int width, int experts, int rows)
      : check_(check), hidden_(hidden), width_(width), rows_(rows) {
    const auto shape = [&](int out, int in) {
      return SyCudaMatrix{
          static_cast<int32_t>(form.format), out, in, form.group, form.group_rows, form.zeros};
    };
    spec_ = {.hidden = hidden,
             .intermediate = width,
             .gate_up = shape(2 * width, hidden),
             .down = shape(hidden, width),
             .bias = form.clamped,
             .clamped = form.clamped,
             .limit = 1.5f,
             .alpha = 1.702f};
    const cuda::ExpertBlock block(spec_);
    check.Expect(check.api().expert_bytes(&spec_, check.error()) == block.bytes, "expert_bytes");
    for (int e = 0; e < experts; ++e) AddExpert(block, e);
    Random random(77);
    for (int i = 0; i < rows * hidden; ++i) x_.push_back(ToBf16(random.Normal()));
    made_ = check.Ok(check.api().ffn_create(check.context(), &spec_, &ffn_, check.error()),
                     "ffn_create");
    const bool wgmma = std::string(check.device().arithmetic).find("wgmma") != std::string::npos;
    rows_are_e4m3_ = wgmma && form.format == Format::kE4M3 && form.group % 128 == 0;
  }
  ~Layer() {
    if (ffn_ != nullptr) check_.api().ffn_destroy(ffn_);
    for (void* block : blocks_) check_.Release(block);
  }
  Layer(const Layer&) = delete;
  Layer& operator=(const Layer&) = delete;

  bool made() const { return made_; }
  int rows() const { return rows_; }

  // Every pair's result [pairs, hidden] in `pairs`' order, and with it the sums of each row.
  struct Results {
    std::vector<float> pairs;
    std::vector<uint16_t> sums;  // [rows + 1, hidden], the last of nothing
    std::vector<float> none;     // of a copy of no pair
  };
  // `waves`: of how many calls the products are, with a wait between them.
  bool Compute(const std::vector<Pair>& pairs, int waves, Results& out);
  // Of some pairs' results and float64's, the pair that is the farthest apart.
  Distance Worst(const std::vector<Pair>& pairs, const std::vector<float>& y, int samples) const;
  void CheckSums(const std::vector<Pair>& pairs, const Results& results) const;

 private:
  struct Expert {
    std::vector<unsigned char> bytes;
    std::vector<RandomMatrix> matrices;  // gate and up, down
  };

  void AddExpert(const cuda::ExpertBlock& block, int e) {
    Expert& expert = experts_.emplace_back();
    expert.bytes.resize(block.bytes);
    unsigned char* const at = expert.bytes.data();
    const auto seed = static_cast<uint64_t>(e) * 2 + 1;
    expert.matrices.emplace_back(block.gate_up, seed, at);
    expert.matrices.emplace_back(block.down, seed + 1, at + block.down_at);
    if (spec_.bias != 0) {
      gate_up_bias_at_ = block.gate_up_bias_at, down_bias_at_ = block.down_bias_at;
      Random random(seed + 1000);
      PutBias(at + block.gate_up_bias_at, spec_.gate_up.rows, random);
      PutBias(at + block.down_bias_at, spec_.down.rows, random);
    }
    blocks_.push_back(check_.Put(at, block.bytes));
  }
  static void PutBias(unsigned char* at, int rows, Random& random) {
    for (int r = 0; r < rows; ++r) {
      const float bias = 0.5f * random.Normal();
      std::memcpy(at + r * 4, &bias, sizeof(bias));
    }
  }
  double Bias(const Expert& expert, size_t at, int row) const {
    if (spec_.bias == 0) return 0;
    float bias;
    std::memcpy(&bias, expert.bytes.data() + at + row * 4, sizeof(bias));
    return static_cast<double>(bias);
  }
  double Activated(double gate, double up) const {
    if (spec_.clamped == 0) return gate / (1 + std::exp(-gate)) * up;
    const auto limit = static_cast<double>(spec_.limit), alpha = static_cast<double>(spec_.alpha);
    gate = std::min(gate, limit), up = std::clamp(up, -limit, limit);
    return (up + 1) * gate / (1 + std::exp(-alpha * gate));
  }
  void Fill(const std::vector<Pair>& pairs, const std::vector<int32_t>& order,
            const std::vector<int32_t>& place, const SyCudaFrame& frame) const;
  void Reference(const Expert& expert, const std::vector<int>& rows,
                 std::vector<std::vector<double>>& y) const;
  static float Weight(size_t pair) { return 0.25f + 0.125f * static_cast<float>(pair % 5); }

  Check& check_;
  const int hidden_, width_, rows_;
  SyCudaFfnSpec spec_ = {};
  SyCudaFfn* ffn_ = nullptr;
  bool made_ = false, rows_are_e4m3_ = false;
  size_t gate_up_bias_at_ = 0, down_bias_at_ = 0;
  std::deque<Expert> experts_;
  std::vector<void*> blocks_;
  std::vector<uint16_t> x_;
};

// y = W·x + bias of rows, and of each row's x.
void Multiply(const RandomMatrix& w, const std::vector<std::vector<double>>& x,
              std::vector<std::vector<double>>& y) {
  y.assign(x.size(), std::vector<double>(static_cast<size_t>(w.shape().rows)));
  std::vector<double> row;
  for (int32_t r = 0; r < w.shape().rows; ++r) {
    w.Row(r, row);
    for (size_t i = 0; i < x.size(); ++i) {
      y[i][static_cast<size_t>(r)] = std::inner_product(row.begin(), row.end(), x[i].begin(), 0.0);
    }
  }
}

void Layer::Reference(const Expert& expert, const std::vector<int>& rows,
                      std::vector<std::vector<double>>& y) const {
  std::vector<std::vector<double>> x, both, inner;
  for (const int row : rows) {
    std::vector<double>& values = x.emplace_back();
    for (int k = 0; k < hidden_; ++k) {
      values.push_back(FromBf16(
          x_[static_cast<size_t>(row) * static_cast<size_t>(hidden_) + static_cast<size_t>(k)]));
    }
    if (rows_are_e4m3_) RoundToE4M3(values);
  }
  Multiply(expert.matrices[0], x, both);
  for (const auto& of_row : both) {
    std::vector<double>& values = inner.emplace_back();
    for (int i = 0; i < width_; ++i) {
      const auto at = [&](bool up) {
        const int32_t row = cuda::GateUpRow(i, up);
        return of_row[static_cast<size_t>(row)] + Bias(expert, gate_up_bias_at_, row);
      };
      values.push_back(FromBf16(ToBf16(static_cast<float>(Activated(at(false), at(true))))));
    }
    if (rows_are_e4m3_) RoundToE4M3(values);
  }
  Multiply(expert.matrices[1], inner, y);
  for (auto& of_row : y) {
    for (int n = 0; n < hidden_; ++n) {
      of_row[static_cast<size_t>(n)] += Bias(expert, down_bias_at_, n);
    }
  }
}

Distance Layer::Worst(const std::vector<Pair>& pairs, const std::vector<float>& y,
                      int samples) const {
  const size_t step = std::max<size_t>(1, pairs.size() / static_cast<size_t>(samples));
  std::vector<std::vector<size_t>> of_expert(experts_.size());
  for (size_t p = 0; p < pairs.size(); p += step) {
    of_expert[static_cast<size_t>(pairs[p].expert)].push_back(p);
  }
  Distance worst{0, 1};
  for (size_t e = 0; e < experts_.size(); ++e) {
    if (of_expert[e].empty()) continue;
    std::vector<int> rows;
    for (const size_t p : of_expert[e]) rows.push_back(pairs[p].row);
    std::vector<std::vector<double>> wanted;
    Reference(experts_[e], rows, wanted);
    for (size_t i = 0; i < wanted.size(); ++i) {
      Distance distance;
      for (size_t n = 0; n < wanted[i].size(); ++n) {
        const float found = y[of_expert[e][i] * wanted[i].size() + n];
        distance.Add(static_cast<double>(found), wanted[i][n]);
      }
      if (!(distance.relative() <= worst.relative())) worst = distance;  // and NaN
    }
  }
  return worst;
}

// The frame's rows, and lists that ask for each pair, for none, and for the sums of each row.
void Layer::Fill(const std::vector<Pair>& pairs, const std::vector<int32_t>& order,
                 const std::vector<int32_t>& place, const SyCudaFrame& frame) const {
  const size_t hidden = static_cast<size_t>(hidden_), row_bytes = hidden * 4, n = pairs.size();
  std::memcpy(frame.x, x_.data(), x_.size() * 2);
  for (size_t p = 0; p < pairs.size(); ++p) {
    frame.gather[p] = pairs[static_cast<size_t>(order[p])].row;
    frame.copy_pair[p] = place[p];
    frame.copy_at[p] = p * row_bytes;
  }
  frame.copy_pair[n] = -1;
  frame.copy_at[n] = n * row_bytes;
  int32_t entry = 0;
  for (int32_t s = 0; s <= rows_; ++s) {
    frame.sum_first[s] = entry;
    frame.sum_at[s] = (n + 1) * row_bytes + static_cast<size_t>(s) * hidden * 2;
    for (size_t p = 0; p < pairs.size(); ++p) {
      if (pairs[p].row != s) continue;
      frame.entry_pair[entry] = place[p];
      frame.entry_weight[entry++] = Weight(p);
    }
  }
  frame.sum_first[rows_ + 1] = entry;
}

bool Layer::Compute(const std::vector<Pair>& pairs, int waves, Results& out) {
  const auto n = static_cast<int32_t>(pairs.size());
  const size_t hidden = static_cast<size_t>(hidden_), row_bytes = hidden * 4;
  std::vector<int32_t> order, place(pairs.size());
  std::vector<SyCudaRun> runs;
  for (size_t e = 0; e < blocks_.size(); ++e) {
    const auto first = static_cast<int32_t>(order.size());
    for (int32_t p = 0; p < n; ++p) {
      if (pairs[static_cast<size_t>(p)].expert != static_cast<int>(e)) continue;
      place[static_cast<size_t>(p)] = static_cast<int32_t>(order.size());
      order.push_back(p);
    }
    const auto count = static_cast<int32_t>(order.size()) - first;
    if (count > 0) runs.push_back({blocks_[e], first, count});
  }
  const size_t copies_bytes = (pairs.size() + 1) * row_bytes;
  const size_t bytes = copies_bytes + static_cast<size_t>(rows_ + 1) * hidden * 2;
  const SyCudaApi& api = check_.api();
  SyCudaError* const error = check_.error();
  const SyCudaFrameSize size{.rows = rows_,
                             .pairs = n,
                             .sums = rows_ + 1,
                             .entries = n,
                             .copies = n + 1,
                             .out_bytes = bytes};
  SyCudaFrame frame;
  void *landed = nullptr, *rows = nullptr;
  if (!check_.Ok(api.allocate(check_.context(), SY_CUDA_PINNED, bytes, &landed, error),
                 "allocate") ||
      !check_.Ok(api.allocate(check_.context(), SY_CUDA_PINNED, x_.size() * 2, &rows, error),
                 "allocate") ||
      !check_.Ok(api.ffn_begin(ffn_, &size, &frame, error), "ffn_begin")) {
    return false;
  }
  std::memset(landed, 0xff, bytes);  // NaNs: what is not written shows
  Fill(pairs, order, place, frame);
  // Some rows lie in memory of their own.
  const int32_t first = rows_ / 2;
  std::memcpy(rows, x_.data(), x_.size() * 2);
  bool ok =
      check_.Ok(
          api.ffn_rows(ffn_, first, rows_ - first,
                       static_cast<uint16_t*>(rows) + static_cast<size_t>(first) * hidden, error),
          "ffn_rows") &&
      (first == 0 || check_.Ok(api.ffn_rows(ffn_, 0, first, frame.x, error), "ffn_rows"));
  for (int w = 0; w < waves && ok; ++w) {
    const size_t from = runs.size() * static_cast<size_t>(w) / static_cast<size_t>(waves);
    const size_t to = runs.size() * static_cast<size_t>(w + 1) / static_cast<size_t>(waves);
    ok =
        check_.Ok(api.ffn_compute(ffn_, runs.data() + from, static_cast<int32_t>(to - from), error),
                  "ffn_compute");
    if (ok && waves > 1) ok = check_.Ok(api.ffn_wait(ffn_, error), "ffn_wait");
  }
  const SyCudaOut outs[] = {
      {landed, 0, copies_bytes},
      {static_cast<char*>(landed) + copies_bytes, copies_bytes, bytes - copies_bytes}};
  ok = ok && check_.Ok(api.ffn_finish(ffn_, outs, 2, error), "ffn_finish") &&
       check_.Ok(api.ffn_wait(ffn_, error), "ffn_wait");
  const auto* const floats = static_cast<const float*>(landed);
  const size_t numbers = pairs.size() * hidden;
  out.pairs.assign(floats, floats + numbers);
  out.none.assign(floats + numbers, floats + numbers + hidden);
  out.sums.resize(static_cast<size_t>(rows_ + 1) * hidden);
  std::memcpy(out.sums.data(), static_cast<const char*>(landed) + copies_bytes,
              out.sums.size() * 2);
  api.release(check_.context(), SY_CUDA_PINNED, landed);
  api.release(check_.context(), SY_CUDA_PINNED, rows);
  return ok;
}

// They are a chain of fused multiplications over the pairs in float32: exactly known.
void Layer::CheckSums(const std::vector<Pair>& pairs, const Results& results) const {
  const size_t hidden = static_cast<size_t>(hidden_);
  std::vector<float> sums(static_cast<size_t>(rows_ + 1) * hidden);
  for (size_t p = 0; p < pairs.size(); ++p) {
    float* const sum = sums.data() + static_cast<size_t>(pairs[p].row) * hidden;
    const float* const y = results.pairs.data() + p * hidden;
    for (size_t i = 0; i < hidden; ++i) sum[i] = std::fmaf(Weight(p), y[i], sum[i]);
  }
  size_t differ = 0;
  for (size_t i = 0; i < sums.size(); ++i) differ += ToBf16(sums[i]) != results.sums[i];
  check_.Expect(differ == 0, "%zu of %zu numbers of weighted sums differ", differ, sums.size());
  const bool zeros =
      std::all_of(results.none.begin(), results.none.end(), [](float x) { return x == 0; });
  check_.Expect(zeros, "a copy of no pair is not zeros");
}

enum class Spread { kUniform, kOne, kHalfEmpty, kOneEach };
constexpr const char* kSpreads[] = {"spread evenly", "all on one", "half of them empty",
                                    "one row each"};

struct FrameCase {
  int rows, experts, top_k;
  Spread spread;
};

std::vector<Pair> PairsOf(const FrameCase& c) {
  Random random(static_cast<uint64_t>(c.rows * 1000 + c.experts));
  std::vector<Pair> pairs;
  for (int r = 0; r < c.rows; ++r) {
    std::vector<int> chosen;
    while (static_cast<int>(chosen.size()) < c.top_k) {
      int e = random.Below(c.experts);
      if (c.spread == Spread::kOne) e = c.experts / 2;
      if (c.spread == Spread::kHalfEmpty) e = e / 2 * 2;
      if (c.spread == Spread::kOneEach) e = r % c.experts;
      if (std::find(chosen.begin(), chosen.end(), e) != chosen.end()) continue;
      chosen.push_back(e);
      pairs.push_back({r, e});
    }
  }
  return pairs;
}

// Parts of a batch have, in other calls, the bits that they have in it.
void CheckCompany(Check& check, Layer& layer, int hidden, const std::vector<Pair>& pairs,
                  const Layer::Results& all) {
  const auto width = static_cast<size_t>(hidden);
  const auto same = [&](const std::vector<size_t>& chosen, int waves, const char* what) {
    std::vector<Pair> some;
    for (const size_t p : chosen) some.push_back(pairs[p]);
    Layer::Results apart;
    if (!layer.Compute(some, waves, apart)) return;
    size_t differ = 0;
    for (size_t i = 0; i < chosen.size(); ++i) {
      differ += std::memcmp(apart.pairs.data() + i * width, all.pairs.data() + chosen[i] * width,
                            width * 4) != 0;
    }
    check.Expect(differ == 0, "%zu of %zu pairs have other bits %s", differ, chosen.size(), what);
  };
  std::vector<size_t> order(pairs.size());
  std::iota(order.begin(), order.end(), size_t{0});
  same(order, 3, "in three calls");
  std::reverse(order.begin(), order.end());
  same(order, 1, "in the other order");
  for (const size_t part : {size_t{3}, size_t{17}}) {
    std::vector<size_t> some;
    for (size_t p = 0; p < pairs.size(); p += part) some.push_back(p);
    same(some, 1, part == 3 ? "among a third of them" : "among a few of them");
  }
  for (const size_t p : {size_t{0}, pairs.size() / 2, pairs.size() - 1}) same({p}, 1, "alone");
}

void CheckCase(Check& check, const Form& form, int hidden, int width, const FrameCase& c) {
  const std::string name = std::string("ffn ") + form.name + ", " + std::to_string(hidden) + " x " +
                           std::to_string(width) + ", " + std::to_string(c.rows) + " rows, " +
                           std::to_string(c.experts) + " experts, " +
                           kSpreads[static_cast<int>(c.spread)];
  if (!check.Begin(name)) return;
  Layer layer(check, form, hidden, width, c.experts, c.rows);
  const std::vector<Pair> pairs = PairsOf(c);
  Layer::Results all;
  if (layer.made() && layer.Compute(pairs, 1, all)) {
    const int64_t work = int64_t{3} * hidden * width;
    const auto samples = static_cast<int>(std::clamp<int64_t>(400'000'000 / work, 4, 256));
    // bf16 of what lies between the products may round otherwise than the reference's where float32
    // and float64 differ; a number of e4m3 that does is 2^-4 apart.
    const double limit = form.format == Format::kE4M3 ? 2e-2 : 4e-3;
    check.Near(layer.Worst(pairs, all.pairs, check.options().quick ? 4 : samples), limit, "error");
    layer.CheckSums(pairs, all);
    CheckCompany(check, layer, hidden, pairs, all);
  }
  check.End();
}

}  // namespace

void CheckFfn(Check& check) {
  const bool quick = check.options().quick;
  const int hidden = quick ? 192 : 512, width = quick ? 128 : 384;
  for (const Form& form : kForms) {
    CheckCase(check, form, hidden, width, {quick ? 9 : 33, quick ? 3 : 8, 2, Spread::kUniform});
  }
  if (quick) {
    // Rows of one expert for which there are several kernels, and what is left of them.
    CheckCase(check, kForms[0], hidden, width, {300, 3, 1, Spread::kOne});
    CheckCase(check, kForms[2], hidden, width, {200, 2, 1, Spread::kOne});
    return CheckCase(check, kForms[2], hidden, width, {70, 4, 1, Spread::kHalfEmpty});
  }
  for (const int form : {0, 2, 6}) {
    for (const int rows : {1, 7, 8, 9, 64, 65, 257, 1000, 4096}) {
      CheckCase(check, kForms[form], hidden, width, {rows, 1, 1, Spread::kOne});
      CheckCase(check, kForms[form], hidden, width, {rows, 32, 4, Spread::kUniform});
    }
    CheckCase(check, kForms[form], hidden, width, {64, 256, 8, Spread::kUniform});
    CheckCase(check, kForms[form], hidden, width, {256, 256, 1, Spread::kOneEach});
    CheckCase(check, kForms[form], hidden, width, {128, 16, 2, Spread::kHalfEmpty});
    CheckCase(check, kForms[form], hidden, width, {4096, 32, 1, Spread::kOne});
    CheckCase(check, kForms[form], 7168, 2048, {40, 4, 2, Spread::kUniform});  // DeepSeek-V3's
    CheckCase(check, kForms[form], 2048, 1408, {70, 6, 2, Spread::kUniform});  // V2-Lite's
  }
}

}  // namespace switchyard::gpu_bench
