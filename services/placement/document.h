// The placement document (protos/switchyard/v1/placement.proto): from JSON, against a model, and
// back. Pure functions, any thread. Whatever a document says, memory and time stay bounded.
//
//   SY_ASSIGN_OR_RETURN(const v1::Placement document, placement::ReadDocument(path));
//   SY_ASSIGN_OR_RETURN(const PlacementIndex index,
//                       placement::Expand(document, GridOf(spec), fingerprint));
//   for (uint16_t worker : index.replicas(layer, expert)) …
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "services/model/spec.h"
#include "switchyard/v1/placement.pb.h"

namespace switchyard::placement {

inline constexpr uint64_t kDocumentBytesMax = 16 << 20;
inline constexpr int kWorkersMax = 4096;
inline constexpr int kLayersMax = 4096;
inline constexpr int kExpertsMax = 1 << 16;
inline constexpr uint64_t kReplicasMax = 1 << 26;  // (worker, layer, expert) of one document
inline constexpr uint64_t kEpochMax = (uint64_t{1} << 63) - 1;

// Where a model has experts. A cell is one (layer, expert); those of layers without experts exist
// and stay empty.
struct ExpertGrid {
  std::vector<bool> moe_layers;
  int experts = 0;

  int layers() const { return static_cast<int>(moe_layers.size()); }
  size_t cells() const { return moe_layers.size() * static_cast<size_t>(experts); }
  size_t cell(int layer, int expert) const {
    return static_cast<size_t>(layer) * static_cast<size_t>(experts) + static_cast<size_t>(expert);
  }
};
ExpertGrid GridOf(const ModelSpec& spec);

// One version of a document, looked up by worker and by expert. Immutable.
class PlacementIndex {
 public:
  struct Worker {
    std::string address, node, zone;
    std::vector<bool> held;  // by cell
    int64_t replicas = 0;    // cells that are held
  };

  uint64_t epoch() const { return epoch_; }
  const ExpertGrid& grid() const { return grid_; }
  // In the document's order.
  const std::vector<Worker>& workers() const { return workers_; }
  // Indices into workers() of those that hold an expert, ascending; empty: none does.
  std::span<const uint16_t> replicas(int layer, int expert) const {
    const size_t cell = grid_.cell(layer, expert);
    return std::span(replicas_).subspan(first_[cell], first_[cell + 1] - first_[cell]);
  }

 private:
  friend absl::StatusOr<PlacementIndex> Expand(const v1::Placement&, const ExpertGrid&,
                                               std::string_view, uint32_t);
  uint64_t epoch_ = 0;
  ExpertGrid grid_;
  std::vector<Worker> workers_;
  std::vector<uint32_t> first_;     // [cells + 1], into replicas_
  std::vector<uint16_t> replicas_;  // by cell
};

// What can be said without a model: JSON, known fields, addresses, well-formed ranges within the
// bounds above, no worker twice. INVALID_ARGUMENT names the place: "workers[1] (10.0.0.2:7000):
// holds[0].experts: …".
absl::StatusOr<v1::Placement> Parse(std::string_view json);
// The same of a file, whose path begins every error; NOT_FOUND if it cannot be opened.
absl::StatusOr<v1::Placement> ReadDocument(const std::string& path);

// INVALID_ARGUMENT unless a document of this epoch can be followed: 0, which is also what is said
// where none stands, is that of no placement.
absl::Status CheckEpoch(const v1::Placement& document);

// The document, which came from Parse, for a model: FAILED_PRECONDITION if it is of another
// checkpoint (an empty fingerprint on either side fits all), INVALID_ARGUMENT for layers and
// experts that the model does not have and for what a worker holds twice, whichever version says
// so. The index is of one version. That an expert has no worker is no error here: see CheckCovers.
absl::StatusOr<PlacementIndex> Expand(const v1::Placement& document, const ExpertGrid& grid,
                                      std::string_view model_fingerprint, uint32_t version = 0);

// FAILED_PRECONDITION with the first experts that nobody holds, and how many there are.
absl::Status CheckCovers(const PlacementIndex& index);

// What `held` (by cell) says, in as few sets as one set a distinct list of experts. Replaces the
// sets of `version` in `worker`.
void SetHolds(const std::vector<bool>& held, const ExpertGrid& grid, uint32_t version,
              v1::WorkerPlacement* worker);

// As in the proto's example: a line a set, so that documents can be read and compared. Parse of it
// gives the same document.
std::string ToJson(const v1::Placement& document);

}  // namespace switchyard::placement
