#include "manifest.h"

#include <algorithm>
#include <set>
#include <sstream>

#include "error.h"
#include "golden.h"
#include "json.h"
#include "modality.h"

namespace mars {
namespace {

constexpr int32_t kSchemaVersion = 1;

template <typename T>
bool repeats(std::vector<T> values) {
  return std::set<T>(values.begin(), values.end()).size() != values.size();
}

void read_modalities(const Node& root, Manifest& manifest) {
  const Node features = root.at("feature_shapes");
  std::vector<std::string> names;
  for (const Node& node : root.at("modalities").items()) {
    manifest.modalities.push_back(read_modality(node));
    manifest.modalities.back().feature = features.at(manifest.modalities.back().name).shape();
    names.push_back(manifest.modalities.back().name);
  }
  if (names.empty() || repeats(names) || features.entries().size() != names.size()) {
    root.at("modalities").refuse("modalities of different names, each with an entry in feature_shapes");
  }
}

// Names and labels reach terminals and logs; UTF-8, whose bytes above ASCII are let through.
void need_printable(const Node& node) {
  const std::string text = node.text();
  auto controls = [](unsigned char c) { return c < 0x20 || c == 0x7f; };
  if (text.empty() || std::any_of(text.begin(), text.end(), controls)) {
    node.refuse("a text without control characters that is not empty");
  }
}

void read_labels(const Node& root, Manifest& manifest) {
  manifest.labels = root.at("labels").texts();
  for (const Node& label : root.at("labels").items()) {
    need_printable(label);
  }
  if (manifest.labels.size() < 2 || repeats(manifest.labels)) {
    root.at("labels").refuse("at least 2 different labels");
  }
  if (root.at("positive_label").value.is_null()) {
    return;
  }
  manifest.positive_label = root.at("positive_label").text();
  const auto& labels = manifest.labels;
  if (std::find(labels.begin(), labels.end(), *manifest.positive_label) == labels.end()) {
    root.at("positive_label").refuse("one of the labels");
  }
}

// Of a segmentation (classes, H, W) with the size of the images.
Shape logits_shape(const Manifest& manifest) {
  const auto labels = static_cast<int32_t>(manifest.labels.size());
  if (manifest.task == "classification") {
    return {labels};
  }
  for (const Modality& modality : manifest.modalities) {
    if (modality.kind == "image") {
      return {labels, modality.shape[1], modality.shape[2]};
    }
  }
  throw bad_model("manifest: a segmentation needs an image modality");
}

void read_experts(const Node& root, Manifest& manifest) {
  manifest.experts = root.at("experts").whole(1);
  manifest.active_experts = root.at("active_experts").whole(1);
  manifest.shared_expert = root.has("shared_expert") && root.at("shared_expert").truth();
  if (manifest.active_experts > manifest.experts) {
    root.at("active_experts").refuse("at most " + std::to_string(manifest.experts) + ", all experts");
  }
  std::vector<std::string> given = root.at("methods").texts();
  // Counted first: a file that claims 10^9 experts must not make us list them.
  const size_t expected = manifest.modalities.size() + manifest.experts + (manifest.shared_expert ? 1 : 0) + 2;
  std::vector<std::string> needed = given.size() == expected ? manifest.methods() : std::vector<std::string>();
  std::sort(given.begin(), given.end());
  std::sort(needed.begin(), needed.end());
  if (given != needed) {
    root.at("methods").refuse("the " + std::to_string(expected) + " that its modalities and experts need");
  }
}

void check_rate(const Node& node) {
  node.need_keys({"value", "low", "high", "errors", "n"});
  const double value = node.at("value").number(), low = node.at("low").number(), high = node.at("high").number();
  if (!(0.0 <= low && low <= value && value <= high && high <= 1.0) ||
      node.at("errors").whole(0) > node.at("n").whole(0)) {
    node.refuse("0 <= low <= value <= high <= 1 and at most n errors");
  }
}

void check_measured(const Node& node) {
  const double value = node.at("value").number(), low = node.at("low").number(), high = node.at("high").number();
  if (!(0.0 <= low && low <= value && value <= high && high <= 1.0)) {
    node.refuse("0 <= low <= value <= high <= 1");
  }
  node.at("n").whole(0);
  node.at("metric").text();
  if (node.has("target")) {
    node.at("target").number();
  }
  if (node.has("bpcer")) {
    check_rate(node.at("bpcer"));
  }
  if (node.has("apcer")) {
    for (const auto& [species, rate] : node.at("apcer").entries()) {
      check_rate(rate);
    }
  }
}

OperatingPoint read_point(const Node& node) {
  node.need_keys({"threshold", "metric", "value", "low", "high", "n", "certified", "target", "temperature", "bpcer",
                  "apcer"});
  check_measured(node);
  const OperatingPoint point{node.at("threshold").number(),
                             node.has("temperature") ? node.at("temperature").number() : 1.0,
                             node.at("certified").truth()};
  if (!(point.temperature > 0.0)) {
    node.at("temperature").refuse("a number above 0");
  }
  return point;
}

void check_cost(const Node& node) {
  node.need_keys({"macs", "weight_bytes", "activation_bytes"});
  node.at("macs").not_negative();
  node.at("weight_bytes").not_negative();
  if (node.has("activation_bytes")) {
    node.at("activation_bytes").not_negative();
  }
}

// Experts that differ count as the costliest, as in `subset_cost` of the Python package.
void read_costs(const Node& root, Manifest& manifest) {
  const std::vector<std::string> methods = manifest.methods();
  if (root.has("costs")) {
    const auto costs = root.at("costs").entries();
    double once = 0.0, expert = 0.0;
    for (const auto& [method, node] : costs) {
      if (std::find(methods.begin(), methods.end(), method) == methods.end() || costs.size() != methods.size()) {
        root.at("costs").refuse("a cost of every method or none");
      }
      check_cost(node);
      const bool is_routed = method.rfind("expert_", 0) == 0 && method != "expert_shared";
      const double macs = node.at("macs").number();
      is_routed ? expert = std::max(expert, macs) : once += macs;
    }
    if (!costs.empty()) {
      manifest.macs = once + manifest.active_experts * expert;
    }
  }
  if (root.has("subset_costs")) {
    for (const auto& [subset, node] : root.at("subset_costs").entries()) {
      manifest.present(subset);
      check_cost(node);
    }
  }
}

void check_requirement(const Node& node, const Manifest& manifest) {
  std::string order;
  for (const Modality& modality : manifest.modalities) {
    order += "|" + modality.name + "|";
  }
  std::istringstream words(node.text() + "|");
  for (std::string word; std::getline(words, word, '|');) {
    if (order.find("|" + word + "|") == std::string::npos) {
      node.refuse("names of modalities, joined by |");
    }
  }
}

void read_policy(const Node& root, Manifest& manifest) {
  for (const auto& [subset, node] : root.at("operating_points").entries()) {
    manifest.present(subset);
    manifest.operating_points.emplace(subset, read_point(node));
  }
  manifest.on_missing = "continue";
  if (!root.has("policy")) {
    return;
  }
  const Node policy = root.at("policy");
  policy.need_keys({"require", "on_missing", "masking_faults"});
  if (policy.has("masking_faults")) {
    for (const Node& fault : policy.at("masking_faults").items()) {
      fault.one_of({"dark", "saturated", "depth-invalid", "covered", "noise", "frozen?"});
    }
  }
  if (policy.has("require")) {
    for (const Node& entry : policy.at("require").items()) {
      check_requirement(entry, manifest);
    }
    manifest.require = policy.at("require").texts();
  }
  if (policy.has("on_missing")) {
    manifest.on_missing = policy.at("on_missing").one_of({"continue", "abstain", "fail_closed"});
  }
}

}  // namespace

size_t count(const Shape& shape) {
  size_t product = 1;
  for (int32_t side : shape) {
    product *= static_cast<size_t>(side);
    if (product > INT32_MAX) {
      throw bad_model("a tensor of shape " + shape_text(shape) + " has more than 2^31 values");
    }
  }
  return product;
}

std::string shape_text(const Shape& shape) {
  std::string text = "(";
  for (size_t axis = 0; axis < shape.size(); ++axis) {
    text += (axis ? ", " : "") + std::to_string(shape[axis]);
  }
  return text + (shape.size() == 1 ? ",)" : ")");
}

std::vector<std::string> Manifest::methods() const {
  std::vector<std::string> names;
  for (const Modality& modality : modalities) {
    names.push_back("encode_" + modality.name);
  }
  names.emplace_back("route");
  for (int32_t i = 0; i < experts; ++i) {
    names.push_back("expert_" + std::to_string(i));
  }
  if (shared_expert) {
    names.emplace_back("expert_shared");
  }
  names.emplace_back("head");
  return names;
}

std::string Manifest::subset(const std::vector<bool>& present) const {
  std::string text;
  for (size_t i = 0; i < modalities.size(); ++i) {
    if (present[i]) {
      text += (text.empty() ? "" : "+") + modalities[i].name;
    }
  }
  return text.empty() ? "none" : text;
}

std::vector<bool> Manifest::present(const std::string& label) const {
  std::vector<bool> found(modalities.size(), false);
  const std::string padded = "+" + label + "+";
  for (size_t i = 0; i < modalities.size(); ++i) {
    found[i] = padded.find("+" + modalities[i].name + "+") != std::string::npos;
  }
  if (label == "none" || subset(found) != label) {
    std::string order = subset(std::vector<bool>(modalities.size(), true));
    throw bad_model("manifest: unknown subset '" + label + "'; its members in order: " + order);
  }
  return found;
}

Manifest read_manifest(const std::string& document) {
  const Json parsed = parse_json(document);
  const Node root{parsed, "manifest"};
  if (root.at("schema_version").value != kSchemaVersion) {
    root.at("schema_version").refuse(std::to_string(kSchemaVersion) + ", which this runner reads");
  }
  root.need_keys({"name", "task", "labels", "positive_label", "modalities", "experts", "active_experts",
                  "feature_shapes", "z_shape", "precision", "methods", "operating_points", "provenance",
                  "shared_expert", "logit_step", "policy", "golden", "parity", "target", "costs", "subset_costs",
                  "parameters", "schema_version"});
  Manifest manifest;
  manifest.document = document;
  need_printable(root.at("name"));
  manifest.name = root.at("name").text();
  manifest.precision = root.at("precision").one_of({"fp32", "fp16", "int8"});
  root.at("provenance").entries();
  if (root.has("logit_step") && !(root.at("logit_step").number() > 0.0)) {
    root.at("logit_step").refuse("a number above 0");
  }
  if (root.has("parameters")) {
    root.at("parameters").not_negative();
  }
  manifest.task = root.at("task").one_of({"classification", "segmentation"});
  read_labels(root, manifest);
  read_modalities(root, manifest);
  manifest.z_shape = root.at("z_shape").shape();
  manifest.logits_shape = logits_shape(manifest);
  read_experts(root, manifest);
  read_policy(root, manifest);
  read_costs(root, manifest);
  if (root.has("golden")) {
    manifest.golden = read_golden(root.at("golden"), manifest);
  }
  return manifest;
}

}  // namespace mars
