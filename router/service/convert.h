// Between router.proto and the engine's plain data.
#pragma once

#include "router/loop/request.h"
#include "switchyard/internal/v1/router.pb.h"

namespace switchyard::router {

// All but the sink. Values are checked by the engine, not here.
EngineRequest FromProto(const internal::v1::Submit& submit);

void ToProto(const TokenEvent& event, internal::v1::Token* token);

}  // namespace switchyard::router
