// The filters, in two files by what they work on.
#pragma once

#include <functional>
#include <map>
#include <string>

#include "gateway/prompt/jinja/renderer.h"

namespace switchyard::gateway::jinja {

using FilterFunction = absl::StatusOr<Value> (*)(Renderer&, const Value& on, const Arguments&);
using FilterTable = std::map<std::string, FilterFunction, std::less<>>;

void AddTextFilters(FilterTable* table);
void AddListFilters(FilterTable* table);

// The value that `a.b.0` names on an item, as map and sort take it.
// `fallback`, where given, takes the place of what is undefined on the way.
absl::StatusOr<Value> AttributePath(Renderer& renderer, const Value& on, const Value& path,
                                    const Value* fallback = nullptr);

}  // namespace switchyard::gateway::jinja
