#include "manifest.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "error.h"
#include "golden.h"
#include "json.h"

namespace mars {
namespace {

constexpr int32_t kSchemaVersion = 1;

bool is_identifier(const std::string& name) {
  auto follows = [](char c) { return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_'; };
  return !name.empty() && name[0] >= 'a' && name[0] <= 'z' && std::all_of(name.begin(), name.end(), follows) &&
         name != "none";
}

// As Python's round: halves go to the even neighbour, which is the processor's default.
int32_t rounded(double value, const Node& node) {
  const double whole = std::nearbyint(value);
  if (!(whole >= 0.0 && whole <= INT32_MAX)) {
    node.refuse("a number that gives a window of 0 to 2^31 samples");
  }
  return static_cast<int32_t>(whole);
}

double number_or(const Node& node, const char* key, double otherwise) {
  return node.has(key) ? node.at(key).number() : otherwise;
}

Shape audio_shape(const Node& node) {
  const double rate_hz = number_or(node, "rate_hz", 15.0);
  const int32_t window = rounded(node.at("window_s").number() * rate_hz, node);
  const int32_t frame = rounded(number_or(node, "frame_s", 0.032) * rate_hz, node);
  if (frame < 2 || window < frame) {
    node.refuse("a window_s of at least frame_s, and that of at least 2 samples");
  }
  const int32_t bands = node.has("mel_bands") ? node.at("mel_bands").whole(1) : 40;
  return {1, bands, 1 + (window - frame) / (frame / 2)};
}

Shape sample_shape(const Node& node, const std::string& kind) {
  if (kind == "audio") {
    return audio_shape(node);
  }
  const int32_t channels = node.has("channels") ? node.at("channels").whole(1) : 1;
  if (kind == "image") {
    const Shape size = node.at("size").shape();
    if (size.size() != 2) {
      node.at("size").refuse("[height, width]");
    }
    return {channels, size[0], size[1]};
  }
  const int32_t length = node.at("length").whole(1);
  if (kind == "vector") {
    return {length};
  }
  return {kind == "text" ? 2 : channels, length};
}

Modality read_modality(const Node& node, const Node& features) {
  node.need_keys({"name", "kind", "channels", "size", "dtype", "range", "rate_hz", "window_s", "mel_bands", "frame_s",
                  "length", "vocabulary"});
  Modality modality;
  modality.name = node.at("name").text();
  if (!is_identifier(modality.name)) {
    node.at("name").refuse("a lower-case identifier");
  }
  modality.kind = node.at("kind").one_of({"image", "audio", "sequence", "vector", "text"});
  modality.shape = sample_shape(node, modality.kind);
  modality.feature = features.at(modality.name).shape();
  return modality;
}

template <typename T>
bool repeats(std::vector<T> values) {
  return std::set<T>(values.begin(), values.end()).size() != values.size();
}

void read_modalities(const Node& root, Manifest& manifest) {
  const Node features = root.at("feature_shapes");
  std::vector<std::string> names;
  for (const Node& node : root.at("modalities").items()) {
    manifest.modalities.push_back(read_modality(node, features));
    names.push_back(manifest.modalities.back().name);
  }
  if (names.empty() || repeats(names) || features.entries().size() != names.size()) {
    root.at("modalities").refuse("modalities of different names, each with an entry in feature_shapes");
  }
}

void read_labels(const Node& root, Manifest& manifest) {
  manifest.labels = root.at("labels").texts();
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

OperatingPoint read_point(const Node& node) {
  const OperatingPoint point{node.at("threshold").number(), number_or(node, "temperature", 1.0),
                             node.at("certified").truth()};
  if (!(point.temperature > 0.0)) {
    node.at("temperature").refuse("a number above 0");
  }
  return point;
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
  if (policy.has("require")) {
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
                  "schema_version"});
  Manifest manifest;
  manifest.document = document;
  manifest.name = root.at("name").text();
  manifest.task = root.at("task").one_of({"classification", "segmentation"});
  read_labels(root, manifest);
  read_modalities(root, manifest);
  manifest.z_shape = root.at("z_shape").shape();
  manifest.logits_shape = logits_shape(manifest);
  read_experts(root, manifest);
  read_policy(root, manifest);
  if (root.has("golden")) {
    manifest.golden = read_golden(root.at("golden"), manifest);
  }
  return manifest;
}

}  // namespace mars
