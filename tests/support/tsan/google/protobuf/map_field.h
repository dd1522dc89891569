// Found before protobuf's own in a ThreadSanitizer build: there protobuf gives MapFieldBase one
// more member, which Debian's library, not built for TSan, does not have.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <string>

#pragma push_macro("__SANITIZE_THREAD__")
#undef __SANITIZE_THREAD__
#include_next <google/protobuf/map_field.h>
#pragma pop_macro("__SANITIZE_THREAD__")
