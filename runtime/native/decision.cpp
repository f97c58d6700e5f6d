#include "decision.h"

#include <algorithm>
#include <cmath>
#include <sstream>

namespace mars {
namespace {

// "depth|ir" is met by either.
bool is_met(const std::string& entry, const Manifest& manifest, const std::vector<bool>& present) {
  std::istringstream words(entry);
  for (std::string word; std::getline(words, word, '|');) {
    for (size_t i = 0; i < present.size(); ++i) {
      if (present[i] && manifest.modalities[i].name == word) {
        return true;
      }
    }
  }
  return false;
}

std::string missing(const Manifest& manifest, const std::vector<bool>& present) {
  std::string text;
  for (size_t i = 0; i < present.size(); ++i) {
    if (!present[i]) {
      text += (text.empty() ? "" : ", ") + manifest.modalities[i].name;
    }
  }
  return text;
}

const OperatingPoint* point_of(const Manifest& manifest, const std::vector<bool>& present) {
  const auto found = manifest.operating_points.find(manifest.subset(present));
  return found == manifest.operating_points.end() ? nullptr : &found->second;
}

// Why this subset may not decide; needs no inference.
std::optional<std::string> objection(const Manifest& manifest, const std::vector<bool>& present) {
  const std::string subset = manifest.subset(present);
  if (subset == "none") {
    return "no sensor is usable";
  }
  for (const std::string& entry : manifest.require) {
    if (!is_met(entry, manifest, present)) {
      return "requires " + entry;
    }
  }
  const std::string gone = missing(manifest, present);
  if (!gone.empty() && manifest.on_missing != "continue") {
    return gone + " missing";
  }
  const OperatingPoint* point = point_of(manifest, present);
  if (point == nullptr) {
    return "subset " + subset + " has no operating point";
  }
  return point->certified ? std::nullopt : std::make_optional("subset " + subset + " is not certified");
}

Decision refusal(const Manifest& manifest, const OperatingPoint* point, const std::string& why) {
  const bool closes = manifest.on_missing == "fail_closed" && manifest.positive_label;
  Decision decision{closes ? "reject" : "abstain", std::nullopt, std::nullopt, std::nullopt, why};
  if (point != nullptr) {
    decision.threshold = point->threshold;
  }
  return decision;
}

// Softmax of logits / temperature, in double.
std::vector<double> probabilities(const float* logits, size_t size, double temperature) {
  const double largest = static_cast<double>(*std::max_element(logits, logits + size)) / temperature;
  std::vector<double> powers(size);
  double total = 0.0;
  for (size_t i = 0; i < size; ++i) {
    powers[i] = std::exp(static_cast<double>(logits[i]) / temperature - largest);
    total += powers[i];
  }
  for (double& power : powers) {
    power /= total;
  }
  return powers;
}

size_t best(const std::vector<double>& scores) {
  return static_cast<size_t>(std::max_element(scores.begin(), scores.end()) - scores.begin());
}

Decision binary(const Manifest& manifest, const OperatingPoint& point, std::vector<double> scores) {
  const auto& labels = manifest.labels;
  const auto positive = std::find(labels.begin(), labels.end(), *manifest.positive_label) - labels.begin();
  const double score = scores[positive];
  const bool accepted = score >= point.threshold;
  scores[positive] = -1.0;
  const std::string& label = accepted ? labels[positive] : labels[best(scores)];
  return {accepted ? "accept" : "reject", label, score, point.threshold, std::nullopt};
}

}  // namespace

Decision decide(const Manifest& manifest, const std::vector<bool>& present, const float* logits) {
  std::optional<std::string> why = objection(manifest, present);
  const OperatingPoint* point = point_of(manifest, present);
  const size_t size = count(manifest.logits_shape);
  if (!why && !(logits != nullptr && std::all_of(logits, logits + size, [](float v) { return std::isfinite(v); }))) {
    why = "the model gave no finite output";
  }
  if (why) {
    return refusal(manifest, point, *why);
  }
  if (manifest.task == "segmentation") {
    return {"map", std::nullopt, std::nullopt, std::nullopt, std::nullopt};
  }
  const std::vector<double> scores = probabilities(logits, size, point->temperature);
  if (manifest.positive_label) {
    return binary(manifest, *point, scores);
  }
  const size_t chosen = best(scores);
  if (scores[chosen] < point->threshold) {
    return refusal(manifest, point, "score below the threshold");
  }
  return {manifest.labels[chosen], manifest.labels[chosen], scores[chosen], point->threshold, std::nullopt};
}

}  // namespace mars
