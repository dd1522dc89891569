#include "services/config/build_info.h"

#include "services/config/build_stamp.h"

namespace switchyard::config {

std::string Version() { return SWITCHYARD_VERSION; }
std::string Commit() { return SWITCHYARD_COMMIT; }
std::string Compiler() { return SWITCHYARD_COMPILER; }

}  // namespace switchyard::config
