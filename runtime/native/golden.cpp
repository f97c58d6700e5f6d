#include "golden.h"

#include <cstring>

#include "error.h"

namespace mars {
namespace {

int base64_value(char c) {
  static const std::string alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  const size_t at = alphabet.find(c);
  return at == std::string::npos ? -1 : static_cast<int>(at);
}

// RFC 4648, section 4, with its padding.
std::vector<uint8_t> decode(const Node& node) {
  const std::string text = node.text();
  const size_t padding = text.size() < 2 ? 0 : (text.back() == '=') + (text[text.size() - 2] == '=');
  std::vector<uint8_t> bytes;
  uint32_t bits = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    const int value = i < text.size() - padding ? base64_value(text[i]) : 0;
    if (value < 0 || text.size() % 4 != 0) {
      node.refuse("base64");
    }
    bits = bits << 6 | static_cast<uint32_t>(value);
    if (i % 4 == 3) {
      bytes.insert(bytes.end(), {uint8_t(bits >> 16), uint8_t(bits >> 8), uint8_t(bits)});
    }
  }
  bytes.resize(bytes.size() - padding);
  return bytes;
}

std::vector<float> values(const Node& node, const Shape& shape) {
  const bool small = node.at("dtype").one_of({"float32", "uint8"}) == "uint8";
  const std::vector<uint8_t> bytes = decode(node.at("data"));
  if (bytes.size() != count(shape) * (small ? 1 : sizeof(float))) {
    node.at("data").refuse("the values of a tensor of shape " + shape_text(shape));
  }
  std::vector<float> found(count(shape));
  if (!small) {
    std::memcpy(found.data(), bytes.data(), bytes.size());  // little-endian, as every processor we run on
  }
  for (size_t i = 0; small && i < bytes.size(); ++i) {
    found[i] = static_cast<float>(bytes[i]) / 255.0f;
  }
  return found;
}

// Fewer pixels may be stored: pixel (y, x) is the stored one at (y * rows / height, x * columns / width).
std::vector<float> enlarged(const std::vector<float>& stored, const Shape& from, const Shape& to) {
  std::vector<float> found;
  for (int64_t c = 0; c < to[0]; ++c) {
    for (int64_t y = 0; y < to[1]; ++y) {
      for (int64_t x = 0; x < to[2]; ++x) {
        found.push_back(stored[(c * from[1] + y * from[1] / to[1]) * from[2] + x * from[2] / to[2]]);
      }
    }
  }
  return found;
}

std::vector<float> read_sample(const Node& node, const Modality& modality) {
  const Shape stored = node.at("shape").shape();
  const Shape& whole = modality.shape;
  const bool same = stored == whole;
  const bool fewer_pixels = modality.kind == "image" && stored.size() == 3 && stored[0] == whole[0] &&
                            stored[1] <= whole[1] && stored[2] <= whole[2];
  if (!same && !fewer_pixels) {
    node.at("shape").refuse(shape_text(whole));
  }
  const std::vector<float> found = values(node, stored);
  return same ? found : enlarged(found, stored, whole);
}

void read_pixels(const Node& node, const Manifest& manifest, Golden& golden) {
  for (const Node& item : node.items()) {
    const auto pair = item.items();
    const Shape& whole = manifest.logits_shape;
    if (pair.size() != 2 || whole.size() != 3 || pair[0].whole(0) >= whole[1] || pair[1].whole(0) >= whole[2]) {
      item.refuse("a row and a column inside the picture");
    }
    golden.pixels.emplace_back(pair[0].whole(0), pair[1].whole(0));
  }
}

}  // namespace

Golden read_golden(const Node& node, const Manifest& manifest) {
  node.need_keys({"inputs", "logits", "tolerance", "pixels"});
  Golden golden;
  golden.tolerance = node.at("tolerance").number();
  if (!(golden.tolerance >= 0.0)) {
    node.at("tolerance").refuse("a number from 0");
  }
  if (node.at("inputs").entries().size() != manifest.modalities.size()) {
    node.at("inputs").refuse("an input of every modality and nothing else");
  }
  for (const Modality& modality : manifest.modalities) {
    golden.samples[modality.name] = read_sample(node.at("inputs").at(modality.name), modality);
  }
  if (node.has("pixels")) {
    read_pixels(node.at("pixels"), manifest, golden);
  }
  if (golden.pixels.empty() != (manifest.task == "classification")) {
    node.refuse("pixels for a segmentation and nothing else");
  }
  const size_t needed = manifest.labels.size() * std::max<size_t>(golden.pixels.size(), 1);
  for (const auto& [subset, answers] : node.at("logits").entries()) {
    manifest.present(subset);
    std::vector<float> logits;
    for (const Node& item : answers.items()) {
      logits.push_back(static_cast<float>(item.number()));
    }
    if (logits.size() != needed) {
      answers.refuse(std::to_string(needed) + " logits");
    }
    golden.logits.emplace_back(subset, logits);
  }
  if (golden.logits.empty()) {
    node.at("logits").refuse("answers: a self-test without any proves nothing");
  }
  return golden;
}

std::vector<float> compared(const Golden& golden, const Manifest& manifest, const std::vector<float>& logits) {
  if (golden.pixels.empty()) {
    return logits;
  }
  const Shape& shape = manifest.logits_shape;
  std::vector<float> found;
  for (const auto& [row, column] : golden.pixels) {
    for (int32_t label = 0; label < shape[0]; ++label) {
      found.push_back(logits[(static_cast<size_t>(label) * shape[1] + row) * shape[2] + column]);
    }
  }
  return found;
}

}  // namespace mars
