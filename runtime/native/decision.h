// What may be said given who is present, as mars_runtime/policy.py without its command-line wishes.
#ifndef MARS_DECISION_H
#define MARS_DECISION_H

#include <cstddef>
#include <optional>
#include <string>
#include <vector>

#include "manifest.h"

namespace mars {

struct Decision {
  std::string verdict;
  std::optional<std::string> label;
  std::optional<double> score;
  std::optional<double> threshold;
  std::optional<std::string> reason;
};

// `logits` (null: none) has the manifest's logits_shape.
Decision decide(const Manifest& manifest, const std::vector<bool>& present, const float* logits);

}  // namespace mars

#endif
