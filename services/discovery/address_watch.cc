#include "services/discovery/address_watch.h"

#include <algorithm>
#include <map>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "services/base/logging.h"
#include "services/discovery/stopper.h"

namespace switchyard::discovery {
namespace {

constexpr std::string_view kDns = "dns:";
constexpr int kMissesMax = 2;
constexpr absl::Duration kRefreshMin = absl::Milliseconds(100);

bool IsDns(std::string_view text) { return text.substr(0, kDns.size()) == kDns; }

}  // namespace

class AddressWatch::State {
 public:
  State(AddressWatchOptions options, Changed changed)
      : options_(std::move(options)), changed_(std::move(changed)) {
    for (const std::string& text : options_.addresses) entries_.push_back(EntryOf(text));
  }

  // Whether there is anything to resolve.
  bool any_names() {
    absl::MutexLock lock(&mutex_);
    return std::any_of(entries_.begin(), entries_.end(),
                       [](const Entry& entry) { return !entry.name.empty(); });
  }
  void Refresh();
  void Run() {
    do {
      Refresh();
    } while (stopper_.Pause(std::max(options_.refresh, kRefreshMin)));
  }
  // Whether no resolver keeps the thread from its end.
  bool Stop() {
    stopper_.Stop();
    absl::MutexLock calling(&calling_);
    absl::MutexLock lock(&mutex_);
    changed_ = nullptr;
    return resolving_ == 0;
  }
  std::vector<Address> addresses() const {
    absl::MutexLock lock(&mutex_);
    return AddressesLocked();
  }
  uint64_t failures() const {
    absl::MutexLock lock(&mutex_);
    return failures_;
  }

 private:
  struct Entry {
    std::string text;  // as it was given
    std::string name;  // to be resolved; empty: never
    std::string port;
    bool spread = false;               // into the addresses of the name
    std::map<std::string, int> hosts;  // and how often in a row each was missing
    std::string error;                 // that was logged
  };
  static Entry EntryOf(const std::string& text);
  void Take(Entry& entry, const absl::StatusOr<std::vector<std::string>>& hosts)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  std::vector<Address> AddressesLocked() const ABSL_SHARED_LOCKS_REQUIRED(mutex_);

  const AddressWatchOptions options_;
  Stopper stopper_;
  absl::Mutex calling_;  // held while `changed_` runs; before mutex_
  mutable absl::Mutex mutex_;
  Changed changed_ ABSL_GUARDED_BY(mutex_);
  std::vector<Entry> entries_ ABSL_GUARDED_BY(mutex_);
  uint64_t failures_ ABSL_GUARDED_BY(mutex_) = 0;
  int resolving_ ABSL_GUARDED_BY(mutex_) = 0;  // calls of the resolver
};

AddressWatch::State::Entry AddressWatch::State::EntryOf(const std::string& text) {
  Entry entry{.text = text};
  if (text.rfind("unix:", 0) == 0) return entry;
  entry.spread = IsDns(text);
  const std::string address = entry.spread ? text.substr(kDns.size()) : text;
  const size_t colon = address.rfind(':');
  const std::string host = address.substr(0, colon);
  if (!entry.spread && IsNumeric(host)) return entry;
  entry.name = host;
  entry.port = address.substr(colon + 1);
  return entry;
}

void AddressWatch::State::Refresh() {
  std::vector<std::string> names;
  {
    absl::MutexLock lock(&mutex_);
    for (const Entry& entry : entries_) names.push_back(entry.name);
  }
  for (size_t i = 0; i < names.size(); ++i) {
    if (names[i].empty()) continue;
    {
      absl::MutexLock lock(&mutex_);
      if (stopper_.stopped()) return;  // with the mutex: Stop tells whether we wait for a resolver
      ++resolving_;
    }
    const auto hosts = options_.resolver(names[i]);
    absl::MutexLock calling(&calling_);
    Changed changed;
    std::vector<Address> now;
    {
      absl::MutexLock lock(&mutex_);
      --resolving_;
      const std::vector<Address> before = AddressesLocked();
      Take(entries_[i], hosts);
      now = AddressesLocked();
      if (now != before) changed = changed_;
    }
    if (changed) changed(now);
  }
}

void AddressWatch::State::Take(Entry& entry,
                               const absl::StatusOr<std::vector<std::string>>& hosts) {
  if (!hosts.ok()) {
    ++failures_;
    std::string error(hosts.status().message());
    if (error != entry.error) {
      log::Warning("{}; its {} known addresses stay", error, entry.hosts.size());
    }
    entry.error = std::move(error);
    return;
  }
  entry.error.clear();
  // A name of one address stays a name, which gRPC resolves again whenever it connects.
  if (!entry.spread && hosts->size() < 2) return;
  entry.spread = true;
  for (auto& [host, misses] : entry.hosts) ++misses;
  for (const std::string& host : *hosts) {
    if (entry.hosts.size() >= options_.addresses_max && !entry.hosts.contains(host)) continue;
    entry.hosts[host] = 0;
  }
  std::erase_if(entry.hosts, [](const auto& host) { return host.second >= kMissesMax; });
}

std::vector<Address> AddressWatch::State::AddressesLocked() const {
  std::vector<Address> out;
  const auto add = [&out](Address address) {
    const auto same = [&](const Address& a) { return a.target == address.target; };
    if (std::none_of(out.begin(), out.end(), same)) out.push_back(std::move(address));
  };
  for (const Entry& entry : entries_) {
    if (!entry.spread) add({.target = entry.text});
    for (const auto& [host, misses] : entry.hosts) {
      add({.target = host + ":" + entry.port, .tls_name = entry.name});
    }
  }
  return out;
}

AddressWatch::AddressWatch(AddressWatchOptions options, Changed changed) {
  const bool follows = options.refresh != absl::InfiniteDuration();
  state_ = std::make_shared<State>(std::move(options), std::move(changed));
  if (follows && state_->any_names()) {
    thread_ = std::thread([state = state_] { state->Run(); });
  }
}

AddressWatch::~AddressWatch() {
  const bool ends = state_->Stop();
  if (!thread_.joinable()) return;
  if (ends) {
    thread_.join();
  } else {
    thread_.detach();  // it has the state for itself, and ends once the resolver has answered
  }
}

std::vector<Address> AddressWatch::addresses() const { return state_->addresses(); }
uint64_t AddressWatch::failures() const { return state_->failures(); }
void AddressWatch::Refresh() { state_->Refresh(); }

}  // namespace switchyard::discovery
