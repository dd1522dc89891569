// What stands behind /admin/*, as JSON. Keys are the fields' names of
// protos/switchyard/v1/admin.proto.
#pragma once

#include <string>
#include <vector>

#include "switchyard/v1/admin.pb.h"

namespace switchyard::gateway {

std::string ExpertsJson(const std::vector<v1::RouterExperts>& routers);
std::string PlacementJson(const std::vector<v1::RouterExperts>& routers);

}  // namespace switchyard::gateway
