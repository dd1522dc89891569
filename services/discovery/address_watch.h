// The addresses of peers, where names among them are followed as they change:
//
//   dns:NAME:PORT  each address of NAME, at PORT, such as the pods of a Kubernetes headless service
//   HOST:PORT      as it is; but a name that has several addresses is followed as with dns:
//   unix:PATH, and addresses in numbers, as they are
//
// A name is resolved again every few seconds. One that cannot be resolved keeps its addresses; one
// that has lost an address keeps it until it is missing twice in a row, as answers of name servers
// can be short of one.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "absl/time/time.h"
#include "services/discovery/resolver.h"

namespace switchyard::discovery {

struct Address {
  std::string target;    // HOST:PORT or unix:PATH, as gRPC takes it
  std::string tls_name;  // that its certificate bears, where it is not the target's host

  friend bool operator==(const Address&, const Address&) = default;
};

struct AddressWatchOptions {
  std::vector<std::string> addresses;         // that config::CheckPeerAddress accepts
  absl::Duration refresh = absl::Seconds(5);  // infinite: only Refresh resolves
  Resolver resolver = SystemResolver;
  size_t addresses_max = 512;  // of a name; more are left out
};

// Thread-safe. A name server that does not answer holds nobody up: the thread that asks it is left
// behind at the end.
class AddressWatch {
 public:
  // Called with all addresses when they have changed, on a thread of the watch's, one at a time; it
  // may come before the constructor has returned. Must not call the watch.
  using Changed = std::function<void(const std::vector<Address>&)>;

  AddressWatch(AddressWatchOptions options, Changed changed);
  ~AddressWatch();  // waits for a callback that runs; none comes afterwards

  // As they are now: of dns: names none until they were resolved once.
  std::vector<Address> addresses() const;
  uint64_t failures() const;  // of resolving
  // Resolves as the thread does, once.
  void Refresh();

 private:
  class State;
  std::shared_ptr<State> state_;
  std::thread thread_;
};

}  // namespace switchyard::discovery
