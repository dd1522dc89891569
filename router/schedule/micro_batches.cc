#include "router/schedule/micro_batches.h"

#include <algorithm>
#include <bit>

namespace switchyard::router {
namespace {

constexpr double kWorthATrial = 0.1;  // of a step is waiting
constexpr double kGain = 0.95;        // halves pay if they take less of a whole step's time
constexpr double kNew = 0.2;          // weight of the newest step,
constexpr double kRareNew = 0.5;      // of a kind that runs now and then
constexpr int kWholeAgain = 64;       // steps in halves until one runs whole

void Average(double value, double weight, double& average) {
  average = average == 0 ? value : average + weight * (value - average);
}

}  // namespace

MicroBatches::Size& MicroBatches::SizeOf(int64_t rows) {
  const int log2 = std::bit_width(static_cast<uint64_t>(std::max<int64_t>(rows, 1))) - 1;
  return sizes_[std::min<size_t>(static_cast<size_t>(log2), sizes_.size() - 1)];
}

int MicroBatches::Choose(int64_t rows, int64_t sequences) {
  if (sequences < 2) return 1;
  Size& size = SizeOf(rows);
  const int usual = size.halves_pay ? 2 : 1;
  if (!size.halves_pay && size.waited < kWorthATrial) return usual;
  if (--size.steps_until_other > 0) return usual;
  size.steps_until_other = size.halves_pay ? kWholeAgain : size.trial_interval;
  return 3 - usual;
}

void MicroBatches::Observe(const Step& step) {
  if (!(step.took_ms > 0) || !(step.expected_ms > 0)) return;
  Size& size = SizeOf(step.rows);
  const double relative = step.took_ms / step.expected_ms;
  const bool usual = (step.micro_batches == 2) == size.halves_pay;
  const double weight = usual ? kNew : kRareNew;
  if (step.micro_batches == 1) {
    Average(relative, weight, size.whole);
    Average(step.waited_ms / step.took_ms, weight, size.waited);
  } else {
    Average(relative, weight, size.halved);
  }
  if (size.whole == 0 || size.halved == 0) return;
  const bool pay = size.halved < kGain * size.whole;
  if (pay) {
    size.trial_interval = kFirstTrial;
  } else if (step.micro_batches == 2) {
    size.trial_interval = std::min(2 * size.trial_interval, kLastTrial);
    size.halved = 0;  // the next trial counts by itself
  }
  if (pay != size.halves_pay) size.steps_until_other = pay ? kWholeAgain : size.trial_interval;
  size.halves_pay = pay;
}

}  // namespace switchyard::router
