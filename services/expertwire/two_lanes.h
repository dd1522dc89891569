// A link of two connections to one worker: one for frames that somebody waits for, one for bulk, so
// that a prompt's rows on their way through gRPC and sockets delay no generated token's. It is up
// while both are.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "services/expertwire/expert_link.h"

namespace switchyard::expertwire {

// Parts above it, the larger way, are bulk.
inline constexpr size_t kBulkBytes = size_t{256} << 10;

class TwoLanes final : public ExpertLink {
 public:
  // Both lead to the same worker; it is known by the name of the first.
  TwoLanes(std::unique_ptr<ExpertLink> quick, std::unique_ptr<ExpertLink> bulk)
      : quick_(std::move(quick)), bulk_(std::move(bulk)) {}

  const std::string& name() const override { return quick_->name(); }
  LinkState state() const override;
  absl::Status why() const override;
  std::shared_ptr<const pb::Hello> peer() const override { return quick_->peer(); }
  uint64_t generation() const override { return quick_->generation() + bulk_->generation(); }
  LinkStats stats() const override;
  bool suspect() const override { return quick_->suspect() || bulk_->suspect(); }

  size_t max_part_bytes() const override { return quick_->max_part_bytes(); }
  bool borrows_rows() const override { return false; }
  absl::Status Send(Call part) override;
  void Cancel(uint64_t call_id, uint32_t attempt) override;
  void Assign(pb::Assign assign) override { quick_->Assign(std::move(assign)); }
  void AckEpoch(uint64_t epoch) override { quick_->AckEpoch(epoch); }
  void Prefetch(pb::Prefetch prefetch) override { quick_->Prefetch(std::move(prefetch)); }
  bool Computing(uint64_t call_id, uint32_t attempt) override {
    return quick_->Computing(call_id, attempt) || bulk_->Computing(call_id, attempt);
  }
  bool Poll(std::vector<LinkEvent>* events) override;

 private:
  const std::unique_ptr<ExpertLink> quick_, bulk_;
};

}  // namespace switchyard::expertwire
