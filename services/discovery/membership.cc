#include "services/discovery/membership.h"

#include <utility>

#include "nlohmann/json.hpp"
#include "services/base/logging.h"
#include "services/base/status.h"
#include "services/config/units.h"

namespace switchyard::discovery {
namespace {

constexpr std::string_view kWorkers = "workers/";

}  // namespace

std::string ToJson(const Member& member) {
  nlohmann::json out = nlohmann::json::object();
  for (const auto& [name, value] : member.facts) out[name] = value;
  out["address"] = member.address;
  return out.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

absl::StatusOr<Member> MemberFromJson(const std::string& json) {
  const nlohmann::json parsed = nlohmann::json::parse(json, nullptr, /*allow_exceptions=*/false);
  if (!parsed.is_object()) return InvalidArgument("not a JSON object");
  Member member;
  for (const auto& [name, value] : parsed.items()) {
    if (!value.is_string()) continue;  // a later version's
    (name == "address" ? member.address : member.facts[name]) = value.get<std::string>();
  }
  SY_RETURN_IF_ERROR(CheckAdvertised(member.address));
  return member;
}

absl::Status CheckAdvertised(const std::string& address) {
  SY_RETURN_IF_ERROR(config::CheckAddress(address));
  const std::string host = address.substr(0, address.rfind(':'));
  const std::string port = address.substr(address.rfind(':') + 1);
  if (address.rfind("unix:", 0) == 0 || host == "0.0.0.0" || host == "[::]" ||
      port.find_first_not_of('0') == std::string::npos) {
    return InvalidArgument("\"{}\" is no address that routers could reach; give HOST:PORT",
                           address);
  }
  return absl::OkStatus();
}

Announcement::Announcement(std::shared_ptr<EtcdClient> client, Member member, absl::Duration ttl)
    : lease_(client, ttl, [client, member = std::move(member)](int64_t lease, Stopper& stopper) {
        etcd::PutRequest put;
        put.set_key(client->Key(std::string(kWorkers) + member.address));
        put.set_value(ToJson(member));
        put.set_lease(lease);
        SY_RETURN_IF_ERROR(client->Put(put, stopper).status());
        log::Info("announced as {} in etcd", member.address);
        return absl::OkStatus();
      }) {}

MemberWatch::MemberWatch(const std::shared_ptr<EtcdClient>& client, Changed changed)
    : keys_(client, client->Key(kWorkers), PrefixEnd(client->Key(kWorkers)),
            [changed = std::move(changed)](const KeyWatch::Keys& keys) {
              std::map<std::string, Member> members;  // keys of other tools may repeat an address
              for (const auto& [key, kv] : keys) {
                absl::StatusOr<Member> member = MemberFromJson(kv.value());
                if (member.ok()) {
                  members.emplace(member->address, *std::move(member));
                } else {
                  log::Warning("etcd: {}: {}; passed over", key, ToStd(member.status().message()));
                }
              }
              std::vector<Member> out;
              for (auto& [address, member] : members) out.push_back(std::move(member));
              changed(out);
            }) {}

}  // namespace switchyard::discovery
