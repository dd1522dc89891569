// The specification of what a dispatcher computes, in one process and in plain order: the experts
// of a checkpoint straight through the kernels, and the fixed reduction tree
//
//   sum of a group  s_g = 0; s_g = fma(w_e, y_e, s_g) for the token's experts e of g, ascending
//   (fp32) rounded once    r_g = s_g in the wire dtype over groups     out = 0; out += r_g for the
//   token's groups, ascending (fp32)
//
// Every real path (embedded, GROUP_SUMS or ROWS over the wire) has to give these bits.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "router/dispatch/dispatcher.h"
#include "services/checkpoint/tensor_source.h"
#include "services/model/spec.h"
#include "services/tensor/buffer.h"

namespace switchyard::test {

// All routed experts of a model, as views into `source`.
struct DirectExperts {
  struct Expert {
    WeightView gate, up;  // separate, or
    WeightView gate_up;   // interleaved by column
    WeightView down;
    VectorView gate_bias, up_bias, gate_up_bias, down_bias;
  };

  static absl::StatusOr<DirectExperts> Load(const ModelSpec& spec,
                                            checkpoint::TensorSource& source);

  std::vector<std::vector<Expert>> layers;  // [layer][expert]; empty for dense layers
};

class DirectDispatcher : public router::Dispatcher {
 public:
  // A job is done at the (polls_until_done + 1)-th time that Finished is asked, so that tests see a
  // stage machine wait. wire: kF32 or kBF16.
  DirectDispatcher(const ModelSpec& spec, const DirectExperts& experts,
                   const kernels::Compute& compute, DType wire, int polls_until_done = 0);

  router::MoeTicket Start(const router::MoeJob& job) override;
  bool Finished(router::MoeTicket ticket) override;
  void Abandon(router::MoeTicket ticket) override { jobs_.erase(ticket); }
  void Wait(absl::Time until) override;

  int in_flight() const { return static_cast<int>(jobs_.size()); }
  int most_in_flight() const { return most_in_flight_; }
  // How long the rows of every later job travel, beside the computing: sent in parallel.
  void set_delay(absl::Duration delay) { delay_ = delay; }
  // Marks row `token` of every later job as lost.
  void LoseRow(int64_t token) { lose_row_ = token; }
  // From now on nobody has these experts of a layer: they are gone already, or their rows are lost
  // by the next job that names one, which finds it out.
  void LoseExperts(int layer, const std::vector<int>& experts, bool known);
  std::span<const uint8_t> Gone(int layer) override;
  // From now on it wants hints, and keeps them.
  void KeepHints() { keeps_hints_ = true; }
  bool WantsHints() const override { return keeps_hints_; }
  void Hint(int layer, std::span<const int32_t> experts) override {
    hints_.push_back({layer, {experts.begin(), experts.end()}});
  }
  struct SaidHint {
    int layer = 0;
    std::vector<int32_t> experts;
  };
  std::vector<SaidHint> TakeHints() { return std::exchange(hints_, {}); }

 private:
  struct Open {
    router::MoeJob job;
    int polls_left = 0;
    absl::Time back = absl::InfinitePast();
  };

  void Compute(const router::MoeJob& job);
  // Fills first_row_ and row_of_pair_: rows sorted by expert, tokens ascending in each.
  void SortByExpert(const router::MoeJob& job);
  void GateUp(const router::MoeJob& job, float* gate_up);
  void Activate(const float* gate_up, kernels::MutableRows out);
  void Down(const router::MoeJob& job, const kernels::Rows& activated, float* y);
  void Combine(const router::MoeJob& job, const float* y);
  // Of a job that names lost experts.
  void LoseRowsOf(const router::MoeJob& job);

  const ModelSpec& spec_;
  const DirectExperts& experts_;
  const kernels::Compute& compute_;
  const DType wire_;
  const int polls_until_done_;
  absl::Duration delay_;
  int64_t lose_row_ = -1;
  struct Lost {
    std::vector<uint8_t> experts;  // [experts]
    bool known = false;
  };
  std::map<int, Lost> lost_;  // by layer
  bool keeps_hints_ = false;
  std::vector<SaidHint> hints_;
  int most_in_flight_ = 0;
  router::MoeTicket next_ticket_ = 1;
  std::map<router::MoeTicket, Open> jobs_;
  std::vector<int32_t> first_row_;    // [experts + 1]
  std::vector<int32_t> tokens_;       // [pairs], the token of each sorted row
  std::vector<int32_t> row_of_pair_;  // [tokens * top_k]
  std::vector<kernels::MatMulTask> tasks_;
  AlignedBuffer gate_up_, activated_, y_, group_sums_;
};

}  // namespace switchyard::test
