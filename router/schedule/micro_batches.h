// One micro-batch or two? With two, the attention of one half of a step runs while the rows of the
// other are at the experts, but each half reads the weights again. Which is faster depends on the
// links, the workers and the size of the step, so it is measured, for each power of two of rows.
//
// A size runs whole until the engine waits for a tenth of such a step; then two halves are tried,
// more rarely each time that they do not pay. A size that runs in halves runs whole now and then,
// so that a change is noticed. (Tokens are the same either way.)
//
// Not thread-safe: the engine thread owns it.
#pragma once

#include <array>
#include <cstdint>

namespace switchyard::router {

class MicroBatches {
 public:
  // How many the next step is to run as. One sequence cannot be cut.
  int Choose(int64_t rows, int64_t sequences);

  struct Step {
    int64_t rows = 0;
    int micro_batches = 1;
    double took_ms = 0;
    double waited_ms = 0;    // of it, with nothing to do
    double expected_ms = 0;  // as StepCost has it, of a whole step; 0: not known
  };
  void Observe(const Step& step);

 private:
  // Steps of [2^i, 2^(i+1)) rows.
  struct Size {
    double waited = 0;             // share of a whole step
    double whole = 0, halved = 0;  // time ÷ expected; 0: not known
    bool halves_pay = false;
    int steps_until_other = kFirstTrial;
    int trial_interval = kFirstTrial;
  };
  static constexpr int kFirstTrial = 8, kLastTrial = 512;

  Size& SizeOf(int64_t rows);

  std::array<Size, 20> sizes_;
};

}  // namespace switchyard::router
