#include <algorithm>

#include "gateway/prompt/jinja/arguments.h"
#include "gateway/prompt/jinja/filters.h"
#include "gateway/prompt/jinja/parser.h"
#include "gateway/prompt/jinja/text_functions.h"
#include "services/base/status.h"

namespace switchyard::gateway::jinja {
namespace {

using Result = absl::StatusOr<Value>;

Result Length(Renderer&, const Value& on, const Arguments&) {
  if (on.IsString()) return Value(CharacterCount(on.str()));
  if (on.IsList()) return Value(on.list().items.size());
  if (on.IsDict()) return Value(on.dict().items.size());
  if (on.IsUndefined()) return Value(0);
  return InvalidArgument("object of type '{}' has no len()", on.TypeName());
}

Result First(Renderer& renderer, const Value& on, const Arguments&) {
  SY_ASSIGN_OR_RETURN(const Values items, renderer.Items(on));
  return items.empty() ? MakeUndefined("No first item, sequence was empty.") : items.front();
}

Result Last(Renderer& renderer, const Value& on, const Arguments&) {
  SY_ASSIGN_OR_RETURN(const Values items, renderer.Items(on));
  return items.empty() ? MakeUndefined("No last item, sequence was empty.") : items.back();
}

Result ListFilter(Renderer& renderer, const Value& on, const Arguments&) {
  SY_ASSIGN_OR_RETURN(Values items, renderer.Items(on));
  return MakeList(std::move(items));
}

Result Join(Renderer& renderer, const Value& on, const Arguments& arguments) {
  SY_ASSIGN_OR_RETURN(const auto a, BoundArguments::Bind("join", arguments, {"d", "attribute"}));
  SY_ASSIGN_OR_RETURN(const std::string separator, a.Text(0, ""));
  SY_ASSIGN_OR_RETURN(const Values items, renderer.Items(on));
  std::string text;
  for (size_t i = 0; i < items.size(); ++i) {
    Value item = items[i];
    if (a.GetNotNone(1) != nullptr) {
      SY_ASSIGN_OR_RETURN(item, AttributePath(renderer, item, *a.Get(1)));
    }
    SY_ASSIGN_OR_RETURN(const std::string part, renderer.ToText(item));
    SY_RETURN_IF_ERROR(renderer.Charge(part.size() + separator.size()));
    if (i > 0) text += separator;
    text += part;
  }
  return renderer.Text(std::move(text));
}

// The rest of the arguments behind the first `skip`.
Arguments Behind(const Arguments& arguments, size_t skip) {
  Arguments rest = arguments;
  rest.positional.erase(rest.positional.begin(),
                        rest.positional.begin() + std::min(skip, rest.positional.size()));
  return rest;
}

// map('filter', …) or map(attribute='name', default=…).
Result Map(Renderer& renderer, const Value& on, const Arguments& arguments) {
  SY_ASSIGN_OR_RETURN(const Values items, renderer.Items(on));
  Values out;
  if (!arguments.positional.empty()) {
    if (!arguments.positional[0].IsString())
      return InvalidArgument("map: a filter's name expected");
    const Arguments rest = Behind(arguments, 1);
    for (const Value& item : items) {
      SY_ASSIGN_OR_RETURN(Value mapped, renderer.Filter(arguments.positional[0].str(), item, rest));
      out.push_back(std::move(mapped));
    }
    return MakeList(std::move(out));
  }
  SY_ASSIGN_OR_RETURN(const auto a,
                      BoundArguments::Bind("map", arguments, {"attribute", "default"}, 1));
  for (const Value& item : items) {
    SY_ASSIGN_OR_RETURN(Value mapped, AttributePath(renderer, item, *a.Get(0), a.GetNotNone(1)));
    out.push_back(std::move(mapped));
  }
  return MakeList(std::move(out));
}

// select, reject: by a test of the item; selectattr, rejectattr: of its attribute.
template <bool keep, bool by_attribute>
Result Select(Renderer& renderer, const Value& on, const Arguments& arguments) {
  SY_ASSIGN_OR_RETURN(const Values items, renderer.Items(on));
  const size_t skip = by_attribute ? 1 : 0;
  if (arguments.positional.size() < skip) return InvalidArgument("an attribute's name is missing");
  const bool tested = arguments.positional.size() > skip;
  if (tested && !arguments.positional[skip].IsString()) {
    return InvalidArgument("a test's name expected");
  }
  const Arguments rest = Behind(arguments, skip + 1);
  Values out;
  for (const Value& item : items) {
    Value value = item;
    if (by_attribute) {
      SY_ASSIGN_OR_RETURN(value, AttributePath(renderer, item, arguments.positional[0]));
    }
    bool holds = value.Truthy();
    if (tested) {
      SY_ASSIGN_OR_RETURN(holds, renderer.Test(arguments.positional[skip].str(), value, rest));
    }
    if (holds == keep) out.push_back(item);
  }
  return MakeList(std::move(out));
}

Result Items(Renderer& renderer, const Value& on, const Arguments&) {
  if (on.IsUndefined()) return MakeList({});
  if (!on.IsDict()) return InvalidArgument("items: can only get item pairs from a mapping");
  return CallMethod(renderer, on, "items", {});
}

// What sorting compares: texts without case where case does not count.
Value SortKey(const Value& value, bool case_sensitive) {
  if (case_sensitive || !value.IsString()) return value;
  return Value(Lower(value.str()));
}

// Sorts stably by keys that belong to the items; the first impossible comparison is the error.
absl::Status SortBy(const Values& keys, bool reverse, Values* items) {
  std::vector<size_t> order(items->size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  // Types that have no order are found first: a comparator must not fail half way.
  for (size_t i = 0; i + 1 < keys.size(); ++i) {
    SY_RETURN_IF_ERROR(Compare(keys[i], keys[i + 1]).status());
  }
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    const auto sign = Compare(keys[reverse ? b : a], keys[reverse ? a : b]);
    return sign.ok() && *sign < 0;
  });
  Values sorted;
  sorted.reserve(items->size());
  for (size_t i : order) sorted.push_back((*items)[i]);
  *items = std::move(sorted);
  return absl::OkStatus();
}

Result Sort(Renderer& renderer, const Value& on, const Arguments& arguments) {
  SY_ASSIGN_OR_RETURN(
      const auto a,
      BoundArguments::Bind("sort", arguments, {"reverse", "case_sensitive", "attribute"}));
  SY_ASSIGN_OR_RETURN(Values items, renderer.Items(on));
  Values keys;
  for (const Value& item : items) {
    Value key = item;
    if (a.GetNotNone(2) != nullptr) {
      SY_ASSIGN_OR_RETURN(key, AttributePath(renderer, item, *a.Get(2)));
    }
    keys.push_back(SortKey(key, a.Bool(1, false)));
  }
  SY_RETURN_IF_ERROR(SortBy(keys, a.Bool(0, false), &items));
  return MakeList(std::move(items));
}

Result DictSort(Renderer& renderer, const Value& on, const Arguments& arguments) {
  SY_ASSIGN_OR_RETURN(const auto a, BoundArguments::Bind("dictsort", arguments,
                                                         {"case_sensitive", "by", "reverse"}));
  SY_ASSIGN_OR_RETURN(const std::string by, a.Text(1, "key"));
  if (by != "key" && by != "value") return InvalidArgument("dictsort: by must be key or value");
  if (!on.IsDict()) return InvalidArgument("dictsort: a dict expected, not {}", on.TypeName());
  SY_ASSIGN_OR_RETURN(const Value pairs, CallMethod(renderer, on, "items", {}));
  Values items = pairs.list().items;
  Values keys;
  for (const auto& [key, value] : on.dict().items) {
    keys.push_back(SortKey(by == "key" ? key : value, a.Bool(0, false)));
  }
  SY_RETURN_IF_ERROR(SortBy(keys, a.Bool(2, false), &items));
  return MakeList(std::move(items));
}

Result Reverse(Renderer& renderer, const Value& on, const Arguments&) {
  if (on.IsString()) return Slice(renderer, on, Value(), Value(), Value(-1));
  SY_ASSIGN_OR_RETURN(Values items, renderer.Items(on));
  std::reverse(items.begin(), items.end());
  return MakeList(std::move(items));
}

Result Unique(Renderer& renderer, const Value& on, const Arguments& arguments) {
  SY_ASSIGN_OR_RETURN(const auto a,
                      BoundArguments::Bind("unique", arguments, {"case_sensitive", "attribute"}));
  SY_ASSIGN_OR_RETURN(const Values items, renderer.Items(on));
  Dict seen;
  Values out;
  for (const Value& item : items) {
    Value key = item;
    if (a.GetNotNone(1) != nullptr) {
      SY_ASSIGN_OR_RETURN(key, AttributePath(renderer, item, *a.Get(1)));
    }
    key = SortKey(key, a.Bool(0, false));
    if (seen.Find(key) != nullptr) continue;
    SY_RETURN_IF_ERROR(seen.Set(key, Value()));
    out.push_back(item);
  }
  return MakeList(std::move(out));
}

template <int sign>
Result Extreme(Renderer& renderer, const Value& on, const Arguments& arguments) {
  SY_ASSIGN_OR_RETURN(const auto a,
                      BoundArguments::Bind("min/max", arguments, {"case_sensitive", "attribute"}));
  SY_ASSIGN_OR_RETURN(const Values items, renderer.Items(on));
  if (items.empty()) return MakeUndefined("No aggregated item, sequence was empty.");
  const Value* best = nullptr;
  Value best_key;
  for (const Value& item : items) {
    Value key = item;
    if (a.GetNotNone(1) != nullptr) {
      SY_ASSIGN_OR_RETURN(key, AttributePath(renderer, item, *a.Get(1)));
    }
    key = SortKey(key, a.Bool(0, false));
    if (best != nullptr) {
      SY_ASSIGN_OR_RETURN(const int order, Compare(key, best_key));
      if (order * sign <= 0) continue;
    }
    best = &item;
    best_key = key;
  }
  return *best;
}

Result Sum(Renderer& renderer, const Value& on, const Arguments& arguments) {
  SY_ASSIGN_OR_RETURN(const auto a, BoundArguments::Bind("sum", arguments, {"attribute", "start"}));
  SY_ASSIGN_OR_RETURN(const Values items, renderer.Items(on));
  Value sum = a.Get(1) == nullptr ? Value(0) : *a.Get(1);
  for (const Value& item : items) {
    Value value = item;
    if (a.GetNotNone(0) != nullptr) {
      SY_ASSIGN_OR_RETURN(value, AttributePath(renderer, item, *a.Get(0)));
    }
    SY_ASSIGN_OR_RETURN(sum, BinaryOperation(renderer, "+", sum, value));
  }
  return sum;
}

Result Batch(Renderer& renderer, const Value& on, const Arguments& arguments) {
  SY_ASSIGN_OR_RETURN(const auto a,
                      BoundArguments::Bind("batch", arguments, {"linecount", "fill_with"}, 1));
  SY_ASSIGN_OR_RETURN(const int64_t size, a.Int(0, 1));
  if (size < 1 || size > 100'000) return InvalidArgument("batch: bad size {}", size);
  SY_ASSIGN_OR_RETURN(const Values items, renderer.Items(on));
  Values batches;
  for (size_t i = 0; i < items.size(); i += size) {
    Values batch(items.begin() + i, items.begin() + std::min<size_t>(i + size, items.size()));
    if (a.GetNotNone(1) != nullptr) batch.resize(size, *a.Get(1));
    SY_RETURN_IF_ERROR(renderer.Charge(batch.size() * sizeof(Value)));
    SY_ASSIGN_OR_RETURN(Value list, MakeList(std::move(batch)));
    batches.push_back(std::move(list));
  }
  return MakeList(std::move(batches));
}

Result Attr(Renderer& renderer, const Value& on, const Arguments& arguments) {
  SY_ASSIGN_OR_RETURN(const auto a, BoundArguments::Bind("attr", arguments, {"name"}, 1));
  SY_ASSIGN_OR_RETURN(const std::string name, a.Text(0, ""));
  if (on.IsDict() && !HasMethod(on, name))
    return MakeUndefined("'dict object' has no attribute '" + name + "'");
  return renderer.Attribute(on, name);
}

const FilterTable& Filters() {
  static const FilterTable& filters = *[] {
    auto* table = new FilterTable;
    AddTextFilters(table);
    AddListFilters(table);
    return table;
  }();
  return filters;
}

}  // namespace

void AddListFilters(FilterTable* table) {
  table->insert({{"length", Length},
                 {"count", Length},
                 {"first", First},
                 {"last", Last},
                 {"list", ListFilter},
                 {"join", Join},
                 {"map", Map},
                 {"select", Select<true, false>},
                 {"reject", Select<false, false>},
                 {"selectattr", Select<true, true>},
                 {"rejectattr", Select<false, true>},
                 {"items", Items},
                 {"sort", Sort},
                 {"dictsort", DictSort},
                 {"reverse", Reverse},
                 {"unique", Unique},
                 {"min", Extreme<-1>},
                 {"max", Extreme<1>},
                 {"sum", Sum},
                 {"batch", Batch},
                 {"attr", Attr}});
}

absl::StatusOr<Value> AttributePath(Renderer& renderer, const Value& on, const Value& path,
                                    const Value* fallback) {
  if (path.IsInt()) return renderer.Item(on, path);
  if (!path.IsString()) return InvalidArgument("an attribute's name expected");
  Value value = on;
  for (std::string_view part : Split(path.str(), ".", -1, false)) {
    const bool digits = !part.empty() && part.size() < 10 &&
                        part.find_first_not_of("0123456789") == std::string_view::npos;
    const Value key = digits ? Value(std::stoi(std::string(part))) : Value(part);
    SY_ASSIGN_OR_RETURN(value, renderer.Item(value, key));
    if (value.IsUndefined() && fallback != nullptr) value = *fallback;
  }
  return value;
}

bool IsFilter(std::string_view name) { return Filters().find(name) != Filters().end(); }

absl::StatusOr<Value> Renderer::Filter(const std::string& name, const Value& on,
                                       const Arguments& arguments) {
  const auto found = Filters().find(name);
  if (found == Filters().end()) return InvalidArgument("no filter named '{}'", name);
  SY_RETURN_IF_ERROR(Charge(SizeOf(on)));
  return found->second(*this, on, arguments);
}

}  // namespace switchyard::gateway::jinja
