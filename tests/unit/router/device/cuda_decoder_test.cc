// The forward pass on an emulated device: near to the CPU's in bf16, and the same bits however a
// sequence is computed.
#include "router/device/cuda_decoder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "expert-worker/worker.h"
#include "router/dispatch/link_dispatcher.h"
#include "services/expertwire/link_set.h"
#include "tests/support/decoder_harness.h"
#include "tests/support/golden.h"

namespace switchyard::test {
namespace {

using Chunk = DecoderHarness::Chunk;
using Sequence = DecoderHarness::Sequence;

constexpr int64_t kBlocks = 64;

std::vector<int32_t> Tokens(const ModelSpec& spec, uint32_t seed, int count) {
  std::vector<int32_t> tokens;
  for (int i = 0; i < count; ++i) {
    seed = seed * 1664525u + 1013904223u;
    tokens.push_back(static_cast<int32_t>((seed >> 8) % static_cast<uint32_t>(spec.vocab)));
  }
  return tokens;
}

std::vector<float> Rows(const ModelSpec& spec, const router::StepResult& result, int first,
                        int count) {
  const float* const from = result.logits + int64_t{first} * spec.vocab;
  return {from, from + int64_t{count} * spec.vocab};
}

// "NAME" or, on a device of compute capability 9.0, "NAME@9".
std::string ModelOf(const std::string& parameter) {
  return LoadGolden(parameter.substr(0, parameter.find('@'))).directory;
}

std::shared_ptr<const device::Cuda> OpenDevice(const std::string& parameter) {
  const bool hopper = parameter.ends_with("@9");
  ::setenv("SIMT_MAJOR", hopper ? "9" : "8", 1);
  auto cuda = *device::Cuda::Open(SY_EMULATED_PLUGIN, 0);
  ::unsetenv("SIMT_MAJOR");
  EXPECT_EQ(cuda->about().arithmetic, std::string(hopper ? "cuda-sm90-wgmma" : "cuda-sm80-mma"));
  return cuda;
}

class CudaDecoderTest : public ::testing::TestWithParam<const char*> {
 protected:
  HarnessOptions OnDevice(int micro_batches = 1, int polls_until_done = 0,
                          const device::DeviceExperts* experts = nullptr) {
    return {.dtype = DType::kBF16,
            .micro_batches = micro_batches,
            .polls_until_done = polls_until_done,
            .kv_blocks = kBlocks,
            .make_runner = [this, experts](router::Dispatcher& dispatcher) {
              auto backbone =
                  router::DeviceBackbone::Load(cuda_, model_.spec, model_.weights, 512, experts);
              EXPECT_TRUE(backbone.ok()) << backbone.status();
              EXPECT_TRUE((*backbone)->AllocateCache(kBlocks).ok());
              backbones_.push_back(*std::move(backbone));
              auto runner =
                  router::CudaDecoder::Create(model_.spec, *backbones_.back(), dispatcher);
              EXPECT_TRUE(runner.ok()) << runner.status();
              return *std::move(runner);
            }};
  }

  const LoadedModel model_{ModelOf(GetParam())};
  const ModelSpec& spec_ = model_.spec;
  const std::shared_ptr<const device::Cuda> cuda_ = OpenDevice(GetParam());
  std::vector<std::unique_ptr<router::DeviceBackbone>> backbones_;
};

// The median over rows: one whose gate chose between near equals in another way is far away, and
// carries others with it.
double Distance(const std::vector<float>& x, const std::vector<float>& wanted, int64_t width) {
  std::vector<double> of_rows;
  for (int64_t row = 0; row < static_cast<int64_t>(x.size()); row += width) {
    double error = 0, size = 0;
    for (auto i = static_cast<size_t>(row); i < static_cast<size_t>(row + width); ++i) {
      error += std::pow(static_cast<double>(x[i]) - static_cast<double>(wanted[i]), 2);
      size += std::pow(static_cast<double>(wanted[i]), 2);
    }
    of_rows.push_back(std::sqrt(error / size));
  }
  std::sort(of_rows.begin(), of_rows.end());
  return of_rows[of_rows.size() / 2];
}

// As near to float32 as the CPU's own bf16 is.
TEST_P(CudaDecoderTest, IsNearToTheCpu) {
  const std::vector<int32_t> prompt = Tokens(spec_, 7, 37);
  DecoderHarness device(model_, OnDevice());
  DecoderHarness rounded(model_, {.dtype = DType::kBF16, .kv_blocks = kBlocks});
  DecoderHarness exact(model_, {.dtype = DType::kF32, .kv_blocks = kBlocks});
  std::vector<float> logits[3];
  std::vector<int32_t> routed[3];
  int at = 0;
  for (DecoderHarness* harness : {&exact, &rounded, &device}) {
    Sequence sequence;
    const router::StepResult& result = harness->Step(
        {.sequence = &sequence, .tokens = prompt, .wanted = Chunk::Logits::kAll, .trace = true});
    logits[at] = Rows(spec_, result, 0, 37);
    routed[at++] = result.routed_experts;
  }
  EXPECT_LT(Distance(logits[2], logits[0], spec_.vocab),
            1.5 * Distance(logits[1], logits[0], spec_.vocab));
  const auto others = [&](int i) {
    int count = 0;
    for (size_t r = 0; r < routed[0].size(); ++r) count += routed[i][r] != routed[0][r];
    return count;
  };
  ASSERT_EQ(routed[2].size(), routed[0].size());
  EXPECT_LE(others(2), 2 * others(1) + 8);
}

TEST_P(CudaDecoderTest, ASequenceHasItsBitsInAnyCompany) {
  const std::vector<int32_t> prompt = Tokens(spec_, 7, 36), other = Tokens(spec_, 99, 60);
  const std::span<const int32_t> mine(prompt), others(other);
  DecoderHarness alone(model_, OnDevice());
  Sequence sequence;
  const std::vector<float> wanted =
      Rows(spec_,
           alone.Step(Chunk{.sequence = &sequence, .tokens = mine, .wanted = Chunk::Logits::kAll}),
           0, 36);
  for (const float x : wanted) ASSERT_TRUE(std::isfinite(x));

  for (const int micro_batches : {1, 2}) {
    DecoderHarness company(model_, OnDevice(micro_batches, 1));
    Sequence first, decoding, starting;
    company.Step(Chunk{.sequence = &decoding, .tokens = others.first(33)});
    const Chunk chunks[] = {
        {.sequence = &decoding, .tokens = others.subspan(33, 1)},
        {.sequence = &first, .tokens = mine.first(23), .wanted = Chunk::Logits::kAll},
        {.sequence = &starting, .tokens = others.first(31), .wanted = Chunk::Logits::kNone}};
    EXPECT_EQ(Rows(spec_, company.Step(chunks), 1, 23),
              std::vector<float>(wanted.begin(), wanted.begin() + ptrdiff_t{23} * spec_.vocab))
        << micro_batches;
    for (int i = 23; i < 25; ++i) {
      const Chunk next[] = {
          {.sequence = &decoding, .tokens = others.subspan(static_cast<size_t>(i) + 11, 1)},
          {.sequence = &first, .tokens = mine.subspan(static_cast<size_t>(i), 1)}};
      EXPECT_EQ(Rows(spec_, company.Step(next), 1, 1),
                std::vector<float>(wanted.begin() + ptrdiff_t{i} * spec_.vocab,
                                   wanted.begin() + ptrdiff_t{i + 1} * spec_.vocab))
          << micro_batches << ", row " << i;
    }
  }
}

TEST_P(CudaDecoderTest, AStepTakesNoMoreMemoryThanItIsPlannedWith) {
  constexpr int kRows = 48;
  const std::vector<int32_t> prompt = Tokens(spec_, 7, kRows);
  DecoderHarness harness(model_, OnDevice());
  const uint64_t before = *cuda_->FreeBytes();
  Sequence sequence;
  harness.Step(Chunk{.sequence = &sequence, .tokens = prompt, .wanted = Chunk::Logits::kAll});
  const uint64_t taken = before - *cuda_->FreeBytes();
  const auto bytes = [&](int rows) {
    return *router::DeviceBackbone::StepBytes(*cuda_, spec_, 512, rows, rows);
  };
  EXPECT_LE(taken, bytes(kRows));
  EXPECT_GT(4 * taken, bytes(kRows));
}

TEST_P(CudaDecoderTest, ABlockIsCopied) {
  const std::vector<int32_t> prompt = Tokens(spec_, 7, 12);
  const std::span<const int32_t> mine(prompt);
  DecoderHarness harness(model_, OnDevice());
  Sequence sequence;
  harness.Step(Chunk{.sequence = &sequence, .tokens = mine.first(11)});
  Sequence fork = sequence;
  for (auto& blocks : fork.blocks) {
    const int32_t copy =
        static_cast<int32_t>(kBlocks) - 1 - static_cast<int32_t>(&blocks - fork.blocks.data());
    harness.runner().CopyBlock(blocks[0], copy);
    blocks[0] = copy;
  }
  const std::vector<float> wanted =
      Rows(spec_, harness.Step(Chunk{.sequence = &sequence, .tokens = mine.subspan(11)}), 0, 1);
  EXPECT_EQ(Rows(spec_, harness.Step(Chunk{.sequence = &fork, .tokens = mine.subspan(11)}), 0, 1),
            wanted);
}

TEST_P(CudaDecoderTest, AnAbandonedStepHarmsNobody) {
  const std::vector<int32_t> prompt = Tokens(spec_, 7, 20);
  DecoderHarness harness(model_, OnDevice(2, 1000000));
  router::ModelRunner& runner = harness.runner();
  const std::vector<int32_t> table = {0, 1, 2, 3};
  router::StepBatch batch;
  batch.tokens = prompt;
  for (int i = 0; i < 20; ++i) batch.positions.push_back(i);
  batch.block_tables.assign(static_cast<size_t>(KvLayoutOf(spec_).groups()),
                            std::vector<const int32_t*>(20, table.data()));
  batch.logit_rows = {19};
  runner.Start(batch);
  while (harness.dispatcher().in_flight() == 0) {
    ASSERT_EQ(runner.Advance(), router::ModelRunner::Progress::kWaiting);
  }
  EXPECT_GT(runner.progress(), 0u);
  runner.Abandon();
  EXPECT_EQ(harness.dispatcher().in_flight(), 0);
  EXPECT_EQ(runner.Advance(), router::ModelRunner::Progress::kDone);
  EXPECT_THAT(runner.result().lost, ::testing::Each(1));
  EXPECT_TRUE(dynamic_cast<router::CudaDecoder&>(runner).failure().ok());
}

// One call fails that never should: nothing is believed afterwards.
TEST_P(CudaDecoderTest, AfterAFailureEveryStepWaitsUntilItIsAbandoned) {
  const std::vector<int32_t> prompt = Tokens(spec_, 7, 5);
  DecoderHarness harness(model_, OnDevice());
  auto& runner = dynamic_cast<router::CudaDecoder&>(harness.runner());
  Sequence sequence;
  const Chunk chunk{.sequence = &sequence, .tokens = prompt};
  EXPECT_THAT(harness.Step(chunk).lost, ::testing::Each(0));
  router::StepBatch batch;
  batch.tokens = {spec_.vocab};  // as a call that the device refuses
  batch.positions = {5};
  for (const auto& blocks : sequence.blocks) batch.block_tables.push_back({blocks.data()});
  for (int time = 0; time < 2; ++time) {
    runner.Start(batch);
    for (int i = 0; i < 3; ++i) {
      EXPECT_EQ(runner.Advance(), router::ModelRunner::Progress::kWaiting);
      runner.Wait(absl::Now());
    }
    EXPECT_TRUE(absl::IsDataLoss(runner.failure())) << runner.failure();
    runner.Abandon();
    EXPECT_EQ(runner.Advance(), router::ModelRunner::Progress::kDone);
    EXPECT_THAT(runner.result().lost, ::testing::Each(1));
    batch.tokens = {0};  // which it would take
  }
}

// All experts of a model on a device, in a worker of this process.
class ExpertsOnDevice {
 public:
  ExpertsOnDevice(const std::string& directory, const ModelSpec& spec,
                  std::shared_ptr<const device::Cuda> cuda)
      : worker_(*worker::Worker::Create(spec, "model", *checkpoint::OpenCheckpoint(directory),
                                        {.experts = "0/1", .cuda = std::move(cuda)}, &pool_)),
        dispatcher_(spec, DType::kBF16, links_, pool_, {}) {
    EXPECT_TRUE(worker_->SettleMemory().ok());
    links_.AddLocal("local", *worker_);
  }
  router::LinkDispatcher& dispatcher() { return dispatcher_; }
  absl::StatusOr<device::DeviceExperts> Pin() { return worker_->PinExperts(); }

 private:
  kernels::ThreadPool pool_{1};
  const std::unique_ptr<worker::Worker> worker_;
  expertwire::LinkSet links_{
      {.hello = expertwire::MakeHello("test", worker_->numerics(), {}, false)}};
  router::LinkDispatcher dispatcher_;
};

// By reference, and as frames to a worker on the same device: the same bits, choices and counts.
TEST_P(CudaDecoderTest, ExpertsOnTheDeviceHaveTheBitsOfTheirFrames) {
  ExpertsOnDevice there(ModelOf(GetParam()), spec_, cuda_);
  const auto experts = there.Pin();
  ASSERT_TRUE(experts.ok()) << experts.status();
  const std::vector<int32_t> prompt = Tokens(spec_, 7, 20), other = Tokens(spec_, 99, 14);
  HarnessOptions framed = OnDevice(2), direct = OnDevice(2, 0, &*experts);
  framed.instead = &there.dispatcher();
  std::vector<std::vector<float>> logits;
  std::vector<router::StepResult> results;
  for (const HarnessOptions& options : {framed, direct}) {
    DecoderHarness harness(model_, options);
    Sequence first, second;
    harness.Step(Chunk{.sequence = &second, .tokens = std::span(other).first(9)});
    const Chunk chunks[] = {
        {.sequence = &first, .tokens = prompt, .wanted = Chunk::Logits::kAll, .trace = true},
        {.sequence = &second, .tokens = std::span(other).subspan(9), .trace = true}};
    results.push_back(harness.Step(chunks));
    logits.push_back(Rows(spec_, results.back(), 0, 21));
    EXPECT_EQ(harness.dispatcher().most_in_flight(), 0);
  }
  EXPECT_EQ(logits[0], logits[1]);
  EXPECT_EQ(results[0].routed_experts, results[1].routed_experts);
  EXPECT_EQ(results[0].routed_weights, results[1].routed_weights);
  EXPECT_THAT(results[1].lost, ::testing::Each(0));
}

// Many runs of an expert, of many rows and of few.
TEST_P(CudaDecoderTest, ExpertsOnTheDeviceHaveTheirBitsInAnyCompany) {
  ExpertsOnDevice there(ModelOf(GetParam()), spec_, cuda_);
  const auto experts = there.Pin();
  ASSERT_TRUE(experts.ok()) << experts.status();
  const std::vector<int32_t> prompt = Tokens(spec_, 7, 24);
  const std::span<const int32_t> mine(prompt);
  DecoderHarness whole(model_, OnDevice(1, 0, &*experts)),
      pieces(model_, OnDevice(1, 0, &*experts));
  Sequence a, b;
  const std::vector<float> wanted =
      Rows(spec_, whole.Step(Chunk{.sequence = &a, .tokens = mine, .wanted = Chunk::Logits::kAll}),
           0, 24);
  std::vector<float> got;
  for (const auto& [first, count] : {std::pair<size_t, size_t>{0, 22}, {22, 1}, {23, 1}}) {
    const std::vector<float> rows = Rows(
        spec_,
        pieces.Step(Chunk{
            .sequence = &b, .tokens = mine.subspan(first, count), .wanted = Chunk::Logits::kAll}),
        0, static_cast<int>(count));
    got.insert(got.end(), rows.begin(), rows.end());
  }
  EXPECT_EQ(got, wanted);
}

INSTANTIATE_TEST_SUITE_P(Models, CudaDecoderTest,
                         ::testing::Values("deepseek-v3-tiny", "deepseek-v3-tiny@9",
                                           "deepseek-v2-tiny", "qwen3-moe-tiny", "mixtral-swa-tiny",
                                           "gpt-oss-tiny"),
                         [](const auto& info) {
                           std::string name = info.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           std::replace(name.begin(), name.end(), '@', '_');
                           return name;
                         });

}  // namespace
}  // namespace switchyard::test
