// Steps that take load off the busiest worker of a layer: a replica moves, is exchanged with
// another, is made, or is given up. Each makes the busiest worker's load smaller and no other's as
// large.
#pragma once

#include "services/placement/layer_state.h"

namespace switchyard::placement {

// Applies the best step again and again, until the balance is at least `enough` or there is none.
// Best is what lowers the highest load most; for each replica that must be loaded, where there is a
// previous placement.
void Improve(double enough, LayerState* state);

// Takes back what need not have moved: replicas return to where they were before as long as the
// balance is at least `enough`.
void TakeBack(double enough, LayerState* state);

// Exchanges experts so that those of one gate group lie on fewer workers, as long as the balance is
// at least `enough`.
void GatherGroups(double enough, LayerState* state);

}  // namespace switchyard::placement
