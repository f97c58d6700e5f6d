#include "modality.h"

#include <algorithm>
#include <cmath>

#include "error.h"

namespace mars {
namespace {

// A narrower range overflows the float32 factor that scales it to 0..1.
constexpr double kNarrowest = 1e-30;
constexpr double kLargest = 2147483648.0;

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

double bounded(const Node& node) {
  if (!(std::abs(node.number()) <= kLargest)) {
    node.refuse("a number within 2^31");
  }
  return node.number();
}

double rate_hz(const Node& node) {
  const double rate = node.has("rate_hz") ? bounded(node.at("rate_hz")) : 15.0;
  if (!(rate > 0.0)) {
    node.at("rate_hz").refuse("a number above 0");
  }
  return rate;
}

int32_t whole_or(const Node& node, const char* key, int32_t otherwise) {
  return node.has(key) ? node.at(key).whole(1) : otherwise;
}

Shape audio_shape(const Node& node) {
  node.need_keys({"name", "kind", "rate_hz", "window_s", "mel_bands", "frame_s"});
  const double frame_s = node.has("frame_s") ? bounded(node.at("frame_s")) : 0.032;
  const double window_s = bounded(node.at("window_s"));
  const int32_t window = rounded(window_s * rate_hz(node), node);
  const int32_t frame = rounded(frame_s * rate_hz(node), node);
  if (!(frame_s > 0.0) || !(window_s >= frame_s) || frame < 2) {
    node.refuse("a window_s of at least frame_s, and that of at least 2 samples");
  }
  return {1, whole_or(node, "mel_bands", 40), 1 + (window - frame) / (frame / 2)};
}

Shape image_shape(const Node& node) {
  node.need_keys({"name", "kind", "rate_hz", "channels", "size", "dtype", "range"});
  const Shape size = node.at("size").shape();
  const int32_t channels = whole_or(node, "channels", 1);
  if (size.size() != 2) {
    node.at("size").refuse("[height, width]");
  }
  if (channels > 16) {
    node.at("channels").refuse("a whole number from 1 to 16");
  }
  return {channels, size[0], size[1]};
}

Shape text_shape(const Node& node) {
  node.need_keys({"name", "kind", "rate_hz", "length", "vocabulary"});
  // Beyond 2^24 a float32 no longer holds every whole number.
  if (node.at("vocabulary").whole(2) > 1 << 24) {
    node.at("vocabulary").refuse("a whole number from 2 to 2^24");
  }
  return {2, node.at("length").whole(1)};
}

Shape sample_shape(const Node& node, const std::string& kind) {
  if (kind == "audio") {
    return audio_shape(node);
  }
  if (kind == "image") {
    return image_shape(node);
  }
  if (kind == "text") {
    return text_shape(node);
  }
  if (kind == "vector") {
    node.need_keys({"name", "kind", "rate_hz", "length", "dtype", "range"});
    return {node.at("length").whole(1)};
  }
  node.need_keys({"name", "kind", "rate_hz", "channels", "length", "dtype", "range"});
  return {whole_or(node, "channels", 1), node.at("length").whole(1)};
}

void check_values(const Node& node) {
  rate_hz(node);
  if (node.has("dtype")) {
    node.at("dtype").one_of({"uint8", "uint16", "float32"});
  }
  if (!node.has("range")) {
    return;
  }
  const auto ends = node.at("range").items();
  if (ends.size() != 2 || !(bounded(ends[1]) - bounded(ends[0]) >= kNarrowest)) {
    node.at("range").refuse("two numbers, low < high");
  }
}

}  // namespace

Modality read_modality(const Node& node) {
  Modality modality;
  modality.name = node.at("name").text();
  if (!is_identifier(modality.name)) {
    node.at("name").refuse("a lower-case identifier");
  }
  modality.kind = node.at("kind").one_of({"image", "audio", "sequence", "vector", "text"});
  modality.shape = sample_shape(node, modality.kind);
  check_values(node);
  return modality;
}

}  // namespace mars
