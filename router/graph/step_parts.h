// How a step's batch falls into sequences and micro-batches, for every runner of it. Pure.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "router/graph/model_runner.h"
#include "services/model/spec.h"

namespace switchyard::router {

// Whether the row (of 1 and more) is another sequence's than the row before.
bool StartsSequence(const StepBatch& batch, int64_t row);

// Where the second micro-batch begins: at the sequence that starts nearest to the middle; all rows
// where there is only one.
int64_t CutRow(const StepBatch& batch);

// Indices [first, second) of the rows in [begin, end) among `rows`, which ascend.
std::pair<size_t, size_t> IndicesOf(const std::vector<int32_t>& rows, int64_t begin, int64_t end);

int CountMoeLayers(const ModelSpec& spec);

}  // namespace switchyard::router
