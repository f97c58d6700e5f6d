// Typed access to a JSON document whose every mistake ends with the place and what was expected there.
#ifndef MARS_JSON_H
#define MARS_JSON_H

#include <cstdint>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "manifest.h"

namespace mars {

using Json = nlohmann::json;

// A value and its place in the document, for example manifest.golden.tolerance.
struct Node {
  const Json& value;
  std::string where;

  // Error(MARS_BAD_MODEL) that quotes the value.
  [[noreturn]] void refuse(const std::string& expected) const;

  Node at(const std::string& key) const;  // must be there
  bool has(const std::string& key) const;  // there and not null
  void need_keys(std::initializer_list<const char*> known) const;  // an object without any other key
  std::vector<std::pair<std::string, Node>> entries() const;
  std::vector<Node> items() const;

  std::string text() const;
  std::string one_of(std::initializer_list<const char*> allowed) const;
  std::vector<std::string> texts() const;
  int32_t whole(int32_t low) const;
  void not_negative() const;  // a whole number from 0, of any size
  double number() const;
  bool truth() const;
  Shape shape() const;  // a list of whole numbers from 1, at most 7 of them
};

// Error(MARS_BAD_MODEL) for anything but one strict JSON document without repeated keys.
Json parse_json(const std::string& document);

}  // namespace mars

#endif
