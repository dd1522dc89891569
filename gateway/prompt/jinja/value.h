// The values of a template: Python's None, bool, int (64 bits), float, str, list, tuple and dict,
// Jinja's Undefined and namespace, and things to call. Strings and containers are shared and never
// change once they are part of a value (templates run in an immutable sandbox); only namespaces do.
// A value that is shared between threads must hold no namespace and nothing to call.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"

namespace switchyard::gateway::jinja {

class Value;
class Renderer;
struct Dict;
struct Namespace;
struct Callable;

using Values = std::vector<Value>;

struct Undefined {
  std::shared_ptr<const std::string> why;  // "'x' is undefined"; nullptr: nothing known
};
struct None {};

struct List {
  Values items;
  bool tuple = false;
  int depth = 1;      // containers inside one another
  uint64_t size = 1;  // SizeOf
};

// Arguments of a call.
struct Arguments {
  Values positional;
  std::vector<std::pair<std::string, Value>> named;
};

class Value {
 public:
  Value() : data_(None{}) {}
  Value(None) : data_(None{}) {}
  Value(Undefined undefined) : data_(std::move(undefined)) {}
  Value(bool value) : data_(value) {}
  Value(int value) : data_(static_cast<int64_t>(value)) {}
  Value(int64_t value) : data_(value) {}
  Value(size_t value) : data_(static_cast<int64_t>(value)) {}
  Value(double value) : data_(value) {}
  Value(std::string value) : data_(std::make_shared<const std::string>(std::move(value))) {}
  Value(std::string_view value) : Value(std::string(value)) {}
  Value(const char* value) : Value(std::string(value)) {}
  Value(std::shared_ptr<const List> list) : data_(std::move(list)) {}
  Value(std::shared_ptr<const Dict> dict) : data_(std::move(dict)) {}
  Value(std::shared_ptr<Namespace> ns) : data_(std::move(ns)) {}
  Value(std::shared_ptr<const Callable> callable) : data_(std::move(callable)) {}

  bool IsUndefined() const { return std::holds_alternative<Undefined>(data_); }
  bool IsNone() const { return std::holds_alternative<None>(data_); }
  bool IsBool() const { return std::holds_alternative<bool>(data_); }
  bool IsInt() const { return std::holds_alternative<int64_t>(data_); }
  bool IsFloat() const { return std::holds_alternative<double>(data_); }
  bool IsNumber() const { return IsBool() || IsInt() || IsFloat(); }
  bool IsString() const {
    return std::holds_alternative<std::shared_ptr<const std::string>>(data_);
  }
  bool IsList() const { return std::holds_alternative<std::shared_ptr<const List>>(data_); }
  bool IsDict() const { return std::holds_alternative<std::shared_ptr<const Dict>>(data_); }
  bool IsNamespace() const { return std::holds_alternative<std::shared_ptr<Namespace>>(data_); }
  bool IsCallable() const { return std::holds_alternative<std::shared_ptr<const Callable>>(data_); }

  // Each only after its test.
  const std::string& str() const { return *std::get<std::shared_ptr<const std::string>>(data_); }
  const List& list() const { return *std::get<std::shared_ptr<const List>>(data_); }
  const Dict& dict() const { return *std::get<std::shared_ptr<const Dict>>(data_); }
  Namespace& ns() const { return *std::get<std::shared_ptr<Namespace>>(data_); }
  const Callable& callable() const { return *std::get<std::shared_ptr<const Callable>>(data_); }
  const Undefined& undefined() const { return std::get<Undefined>(data_); }
  bool boolean() const { return std::get<bool>(data_); }
  int64_t integer() const;  // of a bool or an int
  double number() const;    // of a bool, an int or a float

  // bool() of Python.
  bool Truthy() const;
  // "str", "int", "dict", … as Python names the type.
  std::string_view TypeName() const;

 private:
  std::variant<None, Undefined, bool, int64_t, double, std::shared_ptr<const std::string>,
               std::shared_ptr<const List>, std::shared_ptr<const Dict>, std::shared_ptr<Namespace>,
               std::shared_ptr<const Callable>>
      data_;
};

// Keeps insertion order.
struct Dict {
  std::vector<std::pair<Value, Value>> items;
  absl::flat_hash_map<std::string, size_t> index;  // HashKey → place in items
  int depth = 1;
  uint64_t size = 1;

  const Value* FindText(std::string_view key) const;  // of a text key
  const Value* Find(const Value& key) const;          // nullptr also for what cannot be a key
  // INVALID_ARGUMENT for a key that has no hash (list, dict).
  absl::Status Set(const Value& key, Value value);
};

// Where a for loop stands; what `loop` is.
struct LoopState {
  Value items;  // a list
  size_t index = 0;
  Value changed;  // what loop.changed saw last
  bool changed_once = false;
};

// namespace(…), or `loop`, whose attributes come from its state.
struct Namespace {
  Dict attributes;
  std::unique_ptr<LoopState> loop;
};

// A macro, a bound method, or a function of the environment.
struct Callable {
  std::string name;
  std::function<absl::StatusOr<Value>(Renderer&, const Arguments&)> call;
  int depth = 1;  // of what it holds, as a container's
};

// Deepest nesting of lists and dicts.
inline constexpr int kValueDepthMax = 64;
inline constexpr uint64_t kValueSizeMax = 256 << 20;

// How deep lists, dicts and bound methods lie inside one another.
int DepthOf(const Value& value);
// What walking through the whole value costs, in about bytes; shared parts count as often as they
// are met.
uint64_t SizeOf(const Value& value);
// INVALID_ARGUMENT when it would be nested too deep or larger than kValueSizeMax.
absl::StatusOr<Value> MakeList(Values items, bool tuple = false);
absl::StatusOr<Value> MakeDict(Dict dict);
Value MakeUndefined(std::string why);

absl::StatusOr<Value> FromJson(const nlohmann::ordered_json& json, int depth = 0);

// str() and repr() of Python; Undefined is empty. RESOURCE_EXHAUSTED past `bytes_max`.
absl::StatusOr<std::string> ToText(const Value& value, size_t bytes_max);
absl::StatusOr<std::string> ToRepr(const Value& value, size_t bytes_max);
std::string FloatText(double value);

// == of Python: 1 == 1.0 == True, containers by content.
bool Equal(const Value& a, const Value& b);
// < of Python, -1/0/1; INVALID_ARGUMENT for types that have no order.
absl::StatusOr<int> Compare(const Value& a, const Value& b);

// The characters of an UTF-8 text.
std::vector<std::string_view> Characters(std::string_view text);
int64_t CharacterCount(std::string_view text);

// json.dumps(ensure_ascii=False, …) of Python. indent < 0: on one line.
struct JsonStyle {
  int indent = -1;
  std::string item_separator;  // "" for the default: ", " or with an indent ","
  std::string key_separator = ": ";
  bool sort_keys = false;
  bool ensure_ascii = false;
};
absl::StatusOr<std::string> ToJson(const Value& value, const JsonStyle& style, size_t bytes_max);

}  // namespace switchyard::gateway::jinja
