// The grouped feed-forward of DeepSeek-V3's experts (7168 x 2048), rows and answers in device
// memory: ffn FORMAT ROWS:EXPERTS:TOP_K... prints a line for each shape.
#include "tools/bench/gpu_bench/frames.cuh"

namespace switchyard::gpu_bench {

SyCudaFfnSpec Experts::SpecOf(const std::string& format, int hidden, int intermediate) {
  if (format != "bf16" && format != "e4m3") Die("format \"%s\": bf16 or e4m3", format.c_str());
  const bool e4m3 = format == "e4m3";
  const auto matrix = [&](int rows, int columns) {
    return SyCudaMatrix{.format = e4m3 ? SY_CUDA_E4M3 : SY_CUDA_BF16,
                        .rows = rows,
                        .columns = columns,
                        .group = e4m3 ? 128 : 0,
                        .group_rows = e4m3 ? 8 : 1};
  };
  return {.hidden = hidden,
          .intermediate = intermediate,
          .gate_up = matrix(2 * intermediate, hidden),
          .down = matrix(hidden, intermediate)};
}

Experts::Experts(Gpu& gpu, const std::string& format, int hidden, int intermediate, int count)
    : gpu_(gpu), spec_(SpecOf(format, hidden, intermediate)) {
  const cuda::ExpertBlock block(spec_);
  bytes_ = double(block.gate_up.bytes() + block.down.bytes());
  for (int e = 0; e < count; ++e) {
    auto* const at = static_cast<unsigned char*>(gpu.Device(block.bytes));
    gpu.FillTiles(block.gate_up, at, static_cast<uint32_t>(2 * e));
    gpu.FillTiles(block.down, at + block.down_at, static_cast<uint32_t>(2 * e + 1));
    blocks_.push_back(at);
  }
  gpu.Ok(gpu.api().ffn_create(gpu.context(), &spec_, &ffn_, gpu.error()), "ffn_create");
}

Experts::~Experts() { gpu_.api().ffn_destroy(ffn_); }

Frame::Frame(Gpu& gpu, Experts& experts, int rows, int count, int top_k, uint64_t seed)
    : gpu_(gpu), experts_(experts), rows_(rows), top_k_(top_k) {
  if (count > experts.count() || top_k > count) Die("%d of %d experts", top_k, count);
  Random random(seed);
  std::vector<std::vector<int32_t>> rows_of(static_cast<size_t>(count));
  for (int r = 0; r < rows; ++r) {
    for (const int e : random.Choose(top_k, count)) rows_of[static_cast<size_t>(e)].push_back(r);
  }
  std::vector<std::vector<int32_t>> pairs_of_row(static_cast<size_t>(rows));
  for (int e = 0; e < count; ++e) {
    const auto& mine = rows_of[static_cast<size_t>(e)];
    pairs_of_expert_.push_back(static_cast<int>(mine.size()));
    if (mine.empty()) continue;
    runs_.push_back({experts.block(e), pairs(), static_cast<int32_t>(mine.size())});
    for (const int32_t r : mine) {
      pairs_of_row[static_cast<size_t>(r)].push_back(pairs());
      gather_.push_back(r);
    }
  }
  for (const auto& entries : pairs_of_row) {
    sum_first_.push_back(static_cast<int32_t>(entry_pair_.size()));
    entry_pair_.insert(entry_pair_.end(), entries.begin(), entries.end());
  }
  sum_first_.push_back(static_cast<int32_t>(entry_pair_.size()));
  out_ = gpu.Pinned(out_bytes());
}

void Frame::Begin() {
  const SyCudaFrameSize size{
      .rows = rows_, .pairs = pairs(), .sums = rows_, .entries = pairs(), .out_bytes = out_bytes()};
  gpu_.Ok(gpu_.api().ffn_begin(experts_.ffn(), &size, &frame_, gpu_.error()), "ffn_begin");
  std::copy(gather_.begin(), gather_.end(), frame_.gather);
  std::copy(sum_first_.begin(), sum_first_.end(), frame_.sum_first);
  std::copy(entry_pair_.begin(), entry_pair_.end(), frame_.entry_pair);
  std::fill_n(frame_.entry_weight, pairs(), 1.0f / static_cast<float>(top_k_));
  for (int r = 0; r < rows_; ++r) {
    frame_.sum_at[r] = static_cast<uint64_t>(r) * static_cast<uint64_t>(experts_.spec().hidden) * 2;
  }
}

void Frame::SendRows() {
  gpu_.Ok(gpu_.api().ffn_rows(experts_.ffn(), 0, rows_, frame_.x, gpu_.error()), "ffn_rows");
}
void Frame::Compute() {
  gpu_.Ok(gpu_.api().ffn_compute(experts_.ffn(), runs_.data(), touched(), gpu_.error()),
          "ffn_compute");
}
void Frame::Finish() {
  const SyCudaOut out{out_, 0, out_bytes()};
  gpu_.Ok(gpu_.api().ffn_finish(experts_.ffn(), &out, 1, gpu_.error()), "ffn_finish");
}
void Frame::Wait() { gpu_.Ok(gpu_.api().ffn_wait(experts_.ffn(), gpu_.error()), "ffn_wait"); }

double Frame::bytes() const {
  return touched() * experts_.bytes() + double(x_bytes()) + double(out_bytes());
}
double Frame::flop() const {
  const SyCudaFfnSpec& spec = experts_.spec();
  return 2.0 * pairs() * 3.0 * spec.hidden * spec.intermediate;
}

std::unique_ptr<Kernels> KernelsOf(Experts& experts, Frame& frame) {
  Random random(9);
  frame.Begin();
  for (size_t i = 0; i < frame.x_bytes() / 2; ++i) {  // magnitudes about 1
    frame.x()[i] = static_cast<uint16_t>((random.Bits() & 0x80ff) | 0x3f00);
  }
  frame.SendRows();
  frame.Compute();
  frame.Finish();
  frame.Wait();
  frame.Begin();  // the same places, which the captured calls name
  auto kernels =
      std::make_unique<Kernels>(experts.ffn()->stream(), [&] { frame.Compute(), frame.Finish(); });
  const auto* const out = static_cast<const uint16_t*>(frame.out());
  for (size_t i = 0; i < frame.out_bytes() / 2; ++i) {
    if ((out[i] & 0x7f80) == 0x7f80) Die("a frame of %d rows has no numbers", frame.pairs());
  }
  return kernels;
}

void MeasureFfn(Gpu& gpu, const std::vector<std::string>& words) {
  constexpr int kHidden = 7168, kIntermediate = 2048;
  if (words.size() < 2) Die("usage: ffn FORMAT ROWS:EXPERTS:TOP_K...");
  struct Shape {
    int rows = 0, experts = 0, top_k = 0;
  };
  std::vector<Shape> shapes;
  int most = 0;
  for (size_t i = 1; i < words.size(); ++i) {
    Shape s;
    if (std::sscanf(words[i].c_str(), "%d:%d:%d", &s.rows, &s.experts, &s.top_k) != 3) {
      Die("\"%s\" is not ROWS:EXPERTS:TOP_K", words[i].c_str());
    }
    shapes.push_back(s);
    most = std::max(most, s.experts);
  }
  const size_t room = gpu.free_bytes() / 10 * 9;
  const cuda::ExpertBlock block(Experts::SpecOf(words[0], kHidden, kIntermediate));
  const int fit = static_cast<int>(std::min<size_t>(room / block.bytes, size_t(most)));
  Experts experts(gpu, words[0], kHidden, kIntermediate, fit);
  Stopwatch watch(gpu);
  for (const Shape& s : shapes) {
    Line line("ffn");
    line.Text("format", words[0]).Number("rows", s.rows).Number("experts", s.experts);
    line.Number("top_k", s.top_k);
    if (s.experts > fit) {
      line.Text("reason", "the experts do not fit in the device's memory");
      continue;
    }
    Frame frame(gpu, experts, s.rows, s.experts, s.top_k, 42);
    const std::unique_ptr<Kernels> kernels = KernelsOf(experts, frame);
    const double ms = watch.MedianMs(experts.ffn()->stream(), [&] { kernels->Launch(); });
    line.Number("pairs", frame.pairs()).Number("touched", frame.touched()).Number("ms", ms);
    line.Number("bytes", frame.bytes()).Number("flop", frame.flop());
    line.Number("kernels", double(kernels->nodes()));
  }
}

}  // namespace switchyard::gpu_bench
