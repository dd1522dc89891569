// Which experts of a model somebody holds, or is to hold, as the wire lists them: ranges by layer.
#pragma once

#include "absl/functional/function_ref.h"
#include "services/expertwire/frame.h"

namespace switchyard::expertwire {

using HeldList = google::protobuf::RepeatedPtrField<pb::HeldExperts>;

// Calls fn(layer, expert) for what `list` names of a model of `layers` layers with `experts`
// experts each, in the list's order and twice for what it names twice. What the model has not is
// skipped.
//
// The list may come from outside, with ranges of any size, and many: fn is called four times for
// every expert of the model at most, and what the list names after that is not looked at.
void ForEachHeld(const HeldList& list, int layers, int experts,
                 absl::FunctionRef<void(int layer, int expert)> fn);

// Appends the experts of which is_held(layer, expert) is true; it is asked once for each, in order.
void AddHeld(int layers, int experts, absl::FunctionRef<bool(int layer, int expert)> is_held,
             HeldList* list);

}  // namespace switchyard::expertwire
