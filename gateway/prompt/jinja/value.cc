#include "gateway/prompt/jinja/value.h"

#include <algorithm>
#include <cmath>

#include "services/base/status.h"
#include "services/base/utf8.h"

namespace switchyard::gateway::jinja {
namespace {

// Values that are equal in Python have equal keys; nothing for what has no hash.
bool HashKey(const Value& value, std::string* out) {
  if (value.IsString()) {
    out->append("s").append(value.str());
  } else if (value.IsBool() || value.IsInt()) {
    out->append("i").append(std::to_string(value.integer()));
  } else if (value.IsFloat()) {
    const double number = value.number();
    if (std::floor(number) == number && std::fabs(number) < 9e15) {
      out->append("i").append(std::to_string(static_cast<int64_t>(number)));
    } else {
      out->append("f").append(FloatText(number));
    }
  } else if (value.IsNone()) {
    out->append("n");
  } else if (value.IsList() && value.list().tuple) {
    out->append("t").append(std::to_string(value.list().items.size()));
    for (const Value& item : value.list().items) {
      std::string key;
      if (!HashKey(item, &key)) return false;
      out->append(std::to_string(key.size())).append(":").append(key);
    }
  } else {
    return false;
  }
  return true;
}

}  // namespace

int64_t Value::integer() const {
  return IsBool() ? static_cast<int64_t>(boolean()) : std::get<int64_t>(data_);
}

double Value::number() const {
  return IsFloat() ? std::get<double>(data_) : static_cast<double>(integer());
}

bool Value::Truthy() const {
  if (IsUndefined() || IsNone()) return false;
  if (IsNumber()) return number() != 0;
  if (IsString()) return !str().empty();
  if (IsList()) return !list().items.empty();
  if (IsDict()) return !dict().items.empty();
  return true;
}

std::string_view Value::TypeName() const {
  if (IsUndefined()) return "Undefined";
  if (IsNone()) return "NoneType";
  if (IsBool()) return "bool";
  if (IsInt()) return "int";
  if (IsFloat()) return "float";
  if (IsString()) return "str";
  if (IsList()) return list().tuple ? "tuple" : "list";
  if (IsDict()) return "dict";
  if (IsNamespace()) return "Namespace";
  return "function";
}

const Value* Dict::FindText(std::string_view key) const {
  const auto found = index.find(std::string("s").append(key));
  return found == index.end() ? nullptr : &items[found->second].second;
}

const Value* Dict::Find(const Value& key) const {
  std::string hash;
  if (!HashKey(key, &hash)) return nullptr;
  const auto found = index.find(hash);
  return found == index.end() ? nullptr : &items[found->second].second;
}

absl::Status Dict::Set(const Value& key, Value value) {
  std::string hash;
  if (!HashKey(key, &hash)) return InvalidArgument("unhashable type: '{}'", key.TypeName());
  const auto [at, fresh] = index.try_emplace(std::move(hash), items.size());
  if (fresh) {
    items.emplace_back(key, std::move(value));
  } else {
    items[at->second].second = std::move(value);
  }
  return absl::OkStatus();
}

int DepthOf(const Value& value) {
  if (value.IsList()) return value.list().depth;
  if (value.IsDict()) return value.dict().depth;
  if (value.IsCallable()) return value.callable().depth;
  return 0;
}

uint64_t SizeOf(const Value& value) {
  constexpr uint64_t kNode = 16;
  if (value.IsString()) return kNode + value.str().size();
  if (value.IsList()) return value.list().size;
  if (value.IsDict()) return value.dict().size;
  if (value.IsNamespace()) return kNode + value.ns().attributes.items.size() * kNode;
  return kNode;
}

namespace {

// Adds a part to what is known of its container; false beyond the bounds.
bool Grow(const Value& part, int* depth, uint64_t* size) {
  *depth = std::max(*depth, 1 + DepthOf(part));
  *size += SizeOf(part);
  return *depth <= kValueDepthMax && *size <= kValueSizeMax;
}

absl::Status TooBig() {
  return InvalidArgument("a value is nested deeper than {} or larger than {} bytes", kValueDepthMax,
                         kValueSizeMax);
}

}  // namespace

absl::StatusOr<Value> MakeList(Values items, bool tuple) {
  auto list = std::make_shared<List>();
  for (const Value& item : items) {
    if (!Grow(item, &list->depth, &list->size)) return TooBig();
  }
  list->items = std::move(items);
  list->tuple = tuple;
  return Value(std::shared_ptr<const List>(std::move(list)));
}

absl::StatusOr<Value> MakeDict(Dict dict) {
  dict.depth = 1;
  dict.size = 1;
  for (const auto& [key, value] : dict.items) {
    if (!Grow(key, &dict.depth, &dict.size) || !Grow(value, &dict.depth, &dict.size)) {
      return TooBig();
    }
  }
  return Value(std::shared_ptr<const Dict>(std::make_shared<Dict>(std::move(dict))));
}

Value MakeUndefined(std::string why) {
  return Undefined{std::make_shared<const std::string>(std::move(why))};
}

absl::StatusOr<Value> FromJson(const nlohmann::ordered_json& json, int depth) {
  if (depth > kValueDepthMax) {
    return InvalidArgument("JSON is nested deeper than {}", kValueDepthMax);
  }
  switch (json.type()) {
    case nlohmann::ordered_json::value_t::boolean:
      return Value(json.get<bool>());
    case nlohmann::ordered_json::value_t::number_integer:
      return Value(json.get<int64_t>());
    case nlohmann::ordered_json::value_t::number_unsigned: {
      const uint64_t number = json.get<uint64_t>();
      if (number > static_cast<uint64_t>(INT64_MAX)) return Value(static_cast<double>(number));
      return Value(static_cast<int64_t>(number));
    }
    case nlohmann::ordered_json::value_t::number_float:
      return Value(json.get<double>());
    case nlohmann::ordered_json::value_t::string: {
      std::string text;
      AppendLossy(json.get_ref<const std::string&>(), &text);
      return Value(std::move(text));
    }
    case nlohmann::ordered_json::value_t::array: {
      Values items;
      items.reserve(json.size());
      for (const auto& item : json) {
        SY_ASSIGN_OR_RETURN(Value value, FromJson(item, depth + 1));
        items.push_back(std::move(value));
      }
      return MakeList(std::move(items));
    }
    case nlohmann::ordered_json::value_t::object: {
      Dict dict;
      for (const auto& item : json.items()) {
        SY_ASSIGN_OR_RETURN(Value value, FromJson(item.value(), depth + 1));
        SY_RETURN_IF_ERROR(dict.Set(item.key(), std::move(value)));
      }
      return MakeDict(std::move(dict));
    }
    default:
      return Value(None{});
  }
}

bool Equal(const Value& a, const Value& b) {
  if (a.IsNumber() && b.IsNumber()) {
    if (!a.IsFloat() && !b.IsFloat()) return a.integer() == b.integer();
    return a.number() == b.number();
  }
  if (a.IsString() && b.IsString()) return a.str() == b.str();
  if (a.IsNone() || b.IsNone()) return a.IsNone() && b.IsNone();
  if (a.IsUndefined() || b.IsUndefined()) return a.IsUndefined() && b.IsUndefined();
  if (a.IsList() && b.IsList()) {
    return a.list().tuple == b.list().tuple &&
           std::equal(a.list().items.begin(), a.list().items.end(), b.list().items.begin(),
                      b.list().items.end(), Equal);
  }
  if (a.IsDict() && b.IsDict()) {
    if (a.dict().items.size() != b.dict().items.size()) return false;
    return std::all_of(a.dict().items.begin(), a.dict().items.end(), [&](const auto& item) {
      const Value* other = b.dict().Find(item.first);
      return other != nullptr && Equal(item.second, *other);
    });
  }
  if (a.IsNamespace() && b.IsNamespace()) return &a.ns() == &b.ns();
  if (a.IsCallable() && b.IsCallable()) return &a.callable() == &b.callable();
  return false;
}

absl::StatusOr<int> Compare(const Value& a, const Value& b) {
  const auto sign = [](auto x, auto y) { return x < y ? -1 : x > y ? 1 : 0; };
  if (a.IsNumber() && b.IsNumber()) {
    if (!a.IsFloat() && !b.IsFloat()) return sign(a.integer(), b.integer());
    return sign(a.number(), b.number());
  }
  if (a.IsString() && b.IsString()) return sign(a.str().compare(b.str()), 0);
  if (a.IsList() && b.IsList() && a.list().tuple == b.list().tuple) {
    const Values& x = a.list().items;
    const Values& y = b.list().items;
    for (size_t i = 0; i < x.size() && i < y.size(); ++i) {
      if (Equal(x[i], y[i])) continue;
      return Compare(x[i], y[i]);
    }
    return sign(x.size(), y.size());
  }
  return InvalidArgument("'{}' and '{}' have no order", a.TypeName(), b.TypeName());
}

std::vector<std::string_view> Characters(std::string_view text) {
  std::vector<std::string_view> characters;
  while (!text.empty()) {
    const size_t size = FirstUtf8(text).size;
    characters.push_back(text.substr(0, size));
    text.remove_prefix(size);
  }
  return characters;
}

int64_t CharacterCount(std::string_view text) {
  return std::count_if(text.begin(), text.end(),
                       [](char c) { return (static_cast<uint8_t>(c) & 0xC0) != 0x80; });
}

}  // namespace switchyard::gateway::jinja
