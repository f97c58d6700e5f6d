#include "json.h"

#include <algorithm>
#include <set>

#include "error.h"

namespace mars {

Json parse_json(const std::string& document) {
  std::vector<std::set<std::string>> open;
  auto watch = [&open](int, Json::parse_event_t event, Json& parsed) {
    if (event == Json::parse_event_t::object_start) {
      open.emplace_back();
    } else if (event == Json::parse_event_t::object_end) {
      open.pop_back();
    } else if (event == Json::parse_event_t::key && !open.back().insert(parsed.get<std::string>()).second) {
      throw bad_model("manifest is not JSON: the key '" + parsed.get<std::string>() + "' is there twice");
    }
    return true;
  };
  try {
    return Json::parse(document, watch);
  } catch (const Json::exception& error) {
    throw bad_model(std::string("manifest is not JSON: ") + error.what());
  }
}

void Node::refuse(const std::string& expected) const {
  const std::string given = value.dump(-1, ' ', true, Json::error_handler_t::replace);
  throw bad_model(where + " is " + given.substr(0, 80) + ", expected " + expected);
}

Node Node::at(const std::string& key) const {
  if (!value.is_object()) {
    refuse("an object");
  }
  const auto found = value.find(key);
  if (found == value.end()) {
    throw bad_model(where + " lacks the key '" + key + "'");
  }
  return {*found, where + "." + key};
}

bool Node::has(const std::string& key) const {
  if (!value.is_object()) {
    refuse("an object");
  }
  const auto found = value.find(key);
  return found != value.end() && !found->is_null();
}

void Node::need_keys(std::initializer_list<const char*> known) const {
  for (const auto& [key, node] : entries()) {
    if (std::find(known.begin(), known.end(), key) == known.end()) {
      throw bad_model(where + " has the unknown key " + Json(key).dump(-1, ' ', true, Json::error_handler_t::replace));
    }
  }
}

std::vector<std::pair<std::string, Node>> Node::entries() const {
  if (!value.is_object()) {
    refuse("an object");
  }
  std::vector<std::pair<std::string, Node>> found;
  for (const auto& [key, item] : value.items()) {
    found.emplace_back(key, Node{item, where + "." + key});
  }
  return found;
}

std::vector<Node> Node::items() const {
  if (!value.is_array()) {
    refuse("a list");
  }
  std::vector<Node> found;
  for (size_t i = 0; i < value.size(); ++i) {
    found.push_back({value[i], where + "[" + std::to_string(i) + "]"});
  }
  return found;
}

std::string Node::text() const {
  if (!value.is_string()) {
    refuse("a string");
  }
  return value.get<std::string>();
}

std::string Node::one_of(std::initializer_list<const char*> allowed) const {
  std::string listed;
  for (const char* word : allowed) {
    if (value == word) {
      return word;
    }
    listed += (listed.empty() ? "" : ", ") + std::string(word);
  }
  refuse("one of " + listed);
}

std::vector<std::string> Node::texts() const {
  std::vector<std::string> found;
  for (const Node& item : items()) {
    found.push_back(item.text());
  }
  return found;
}

int32_t Node::whole(int32_t low) const {
  const bool inside = value.is_number_integer() && value >= low && value <= INT32_MAX;
  if (!inside) {
    refuse("a whole number from " + std::to_string(low));
  }
  return value.get<int32_t>();
}

void Node::not_negative() const {
  if (!value.is_number_integer() || value < 0) {
    refuse("a whole number from 0");
  }
}

double Node::number() const {
  if (!value.is_number()) {
    refuse("a number");
  }
  return value.get<double>();
}

bool Node::truth() const {
  if (!value.is_boolean()) {
    refuse("true or false");
  }
  return value.get<bool>();
}

Shape Node::shape() const {
  Shape found;
  for (const Node& side : items()) {
    found.push_back(side.whole(1));
  }
  // One side of the eight is the batch axis.
  if (found.empty() || found.size() > 7) {
    refuse("1 to 7 sides");
  }
  return found;
}

}  // namespace mars
