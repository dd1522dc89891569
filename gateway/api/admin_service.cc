#include "gateway/api/admin_service.h"

#include <string>
#include <utility>

#include "gateway/api/authorization.h"
#include "services/base/clock.h"
#include "services/base/status.h"
#include "services/rpc/status_map.h"

namespace switchyard::gateway {

grpc::ServerUnaryReactor* AdminService::Ask(grpc::CallbackServerContext* context,
                                            const char* method, Fill fill) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  const absl::Time start = SteadyNow();
  const auto end = [this, reactor, method, start](const absl::Status& status) {
    metrics_.RequestEnded("grpc", method, std::string(absl::StatusCodeToString(status.code())),
                          SteadyNow() - start);
    reactor->Finish(rpc::ToGrpc(status));
  };
  if (const auto key = Authorize(keys_, *context); !key.ok()) {
    end(key.status());
    return reactor;
  }
  routers_.DescribeExperts(kAdminTimeout,
                           [end, fill = std::move(fill)](std::vector<v1::RouterExperts> answers) {
                             fill(std::move(answers));
                             end(absl::OkStatus());
                           });
  return reactor;
}

grpc::ServerUnaryReactor* AdminService::GetExperts(grpc::CallbackServerContext* context,
                                                   const v1::GetExpertsRequest*,
                                                   v1::GetExpertsResponse* response) {
  return Ask(context, "GetExperts", [response](std::vector<v1::RouterExperts> answers) {
    for (v1::RouterExperts& answer : answers) {
      answer.mutable_placement()->clear_document();
      *response->add_routers() = std::move(answer);
    }
  });
}

grpc::ServerUnaryReactor* AdminService::GetPlacement(grpc::CallbackServerContext* context,
                                                     const v1::GetPlacementRequest*,
                                                     v1::GetPlacementResponse* response) {
  return Ask(context, "GetPlacement", [response](std::vector<v1::RouterExperts> answers) {
    for (v1::RouterExperts& answer : answers) {
      auto* router = response->add_routers();
      router->set_router_id(answer.router_id());
      *router->mutable_placement() = std::move(*answer.mutable_placement());
    }
  });
}

}  // namespace switchyard::gateway
