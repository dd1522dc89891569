// switchyard.v1.Admin: what the routers tell of themselves, for whoever has a key.
#pragma once

#include "absl/time/time.h"
#include "gateway/api/gateway_metrics.h"
#include "gateway/upstream/router_client.h"
#include "services/security/keys.h"
#include "switchyard/v1/admin.grpc.pb.h"

namespace switchyard::gateway {

// How long routers are waited for.
inline constexpr absl::Duration kAdminTimeout = absl::Seconds(2);

class AdminService final : public v1::Admin::CallbackService {
 public:
  // All outlive it; the server it stands in is shut down before they stop. `keys` null: no key is
  // asked for.
  AdminService(const RouterClient& routers, GatewayMetrics& metrics, const security::KeySet* keys)
      : routers_(routers), metrics_(metrics), keys_(keys) {}

  grpc::ServerUnaryReactor* GetExperts(grpc::CallbackServerContext* context,
                                       const v1::GetExpertsRequest* request,
                                       v1::GetExpertsResponse* response) override;
  grpc::ServerUnaryReactor* GetPlacement(grpc::CallbackServerContext* context,
                                         const v1::GetPlacementRequest* request,
                                         v1::GetPlacementResponse* response) override;

 private:
  // Asks the routers, has `fill` put their answers where they belong, and ends the call.
  using Fill = std::function<void(std::vector<v1::RouterExperts>)>;
  grpc::ServerUnaryReactor* Ask(grpc::CallbackServerContext* context, const char* method,
                                Fill fill);

  const RouterClient& routers_;
  GatewayMetrics& metrics_;
  const security::KeySet* const keys_;
};

}  // namespace switchyard::gateway
