// Where the experts of one layer lie while they are being placed: who holds what, the load that
// gives each worker, and what may be added or taken away without breaking a rule. Not thread-safe.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace switchyard::placement {

// One layer's question to the planner; workers, nodes, zones and experts are indices from 0.
struct LayerProblem {
  struct Worker {
    int node = 0, zone = 0;
    double speed = 1;  // rows/s, or shares of any unit
    int slots = 0;     // experts that it may hold
  };
  std::vector<Worker> workers;
  std::vector<double> load;  // rows by expert
  int min_replicas = 1;
  int replicas_max = 0;  // of all experts together
  int experts_per_group = 1;
  // [node][expert]: whether an expert may lie on a node; empty: everywhere.
  std::vector<std::vector<bool>> allowed;
  // [worker][expert]: whether an expert cannot lie on a worker; empty: nowhere.
  std::vector<std::vector<bool>> barred;
  // [worker][expert], as it was; moving as little as possible away from that. Empty: no previous.
  std::vector<std::vector<bool>> previous;
  // How much less balanced than a fresh plan one that grew out of the previous may be, in loads of
  // a mean replica.
  double tolerance = 0;
  // Whatever the balance, the previous placement stays if every expert has its least replicas
  // there.
  bool leave_alone = false;

  int experts() const { return static_cast<int>(load.size()); }
};

// Each replica takes an equal part of its expert's rows. The load of a worker is in seconds: rows
// over speed.
class LayerState {
 public:
  explicit LayerState(const LayerProblem& problem);  // `problem` outlives it

  const LayerProblem& problem() const { return *problem_; }
  int workers() const { return static_cast<int>(problem_->workers.size()); }
  int replicas() const { return replicas_; }
  int replicas(int expert) const { return static_cast<int>(holders_[Ix(expert)].size()); }
  std::span<const int> holders(int expert) const { return holders_[Ix(expert)]; }
  std::span<const int> experts_of(int worker) const { return experts_of_[Ix(worker)]; }
  bool holds(int worker, int expert) const { return held_[Ix(worker)][Ix(expert)]; }
  const std::vector<std::vector<bool>>& held() const { return held_; }
  bool full(int worker) const {
    return static_cast<int>(experts_of(worker).size()) >= problem_->workers[Ix(worker)].slots;
  }

  // Rows that each of `replicas` takes.
  double share(int expert, int replicas) const { return problem_->load[Ix(expert)] / replicas; }
  double share(int expert) const { return share(expert, replicas(expert)); }
  double speed(int worker) const { return problem_->workers[Ix(worker)].speed; }
  double load(int worker) const { return rows_[Ix(worker)] / speed(worker); }
  // The same after `rows` more.
  double load(int worker, double rows) const { return (rows_[Ix(worker)] + rows) / speed(worker); }
  // The busiest worker, the first of equals.
  int busiest() const;
  // Mean over highest load; 1 where there is no load.
  double balance() const;

  void Add(int worker, int expert);
  void Remove(int worker, int expert);

  // By how many nodes and zones an expert's replicas fall short of lying apart.
  int crowding(int expert) const { return crowding_[Ix(expert)]; }
  // The same, had it replicas that lie on `gained` (-1: nothing) more and not on `lost` (-1).
  int CrowdingAfter(int expert, int gained, int lost) const;
  // Whether `worker` may take the expert on, slots aside; `lost` is the worker that gives it up, or
  // -1 for one replica more.
  bool MayTake(int worker, int expert, int lost = -1) const {
    return !holds(worker, expert) && Allowed(worker, expert) &&
           CrowdingAfter(expert, worker, lost) <= crowding(expert);
  }
  bool MayDrop(int worker, int expert) const {
    return replicas(expert) > problem_->min_replicas &&
           CrowdingAfter(expert, -1, worker) <= crowding(expert);
  }
  bool Allowed(int worker, int expert) const {
    const LayerProblem& p = *problem_;
    return (p.allowed.empty() || p.allowed[Ix(p.workers[Ix(worker)].node)][Ix(expert)]) &&
           (p.barred.empty() || !p.barred[Ix(worker)][Ix(expert)]);
  }
  // Whether this replica need not be loaded, as it was there before.
  bool WasHere(int worker, int expert) const {
    return !problem_->previous.empty() && problem_->previous[Ix(worker)][Ix(expert)];
  }

 private:
  static size_t Ix(int i) { return static_cast<size_t>(i); }
  void Spread(int expert, double sign);

  const LayerProblem* problem_;
  int replicas_ = 0;
  double rows_sum_ = 0, speed_sum_ = 0;
  std::vector<std::vector<bool>> held_;       // [worker][expert]
  std::vector<std::vector<int>> holders_;     // by expert, ascending
  std::vector<std::vector<int>> experts_of_;  // by worker, ascending
  std::vector<double> rows_;                  // by worker
  std::vector<int> nodes_, zones_;            // that an expert may lie on, by expert
  std::vector<int> crowding_;                 // by expert
};

}  // namespace switchyard::placement
