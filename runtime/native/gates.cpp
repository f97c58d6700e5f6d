#include "gates.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace mars {
namespace {

// In the order in which NumPy adds: eight running sums from eight values on.
double sum(const std::vector<double>& values) {
  size_t at = 0;
  double total = 0.0;
  if (values.size() >= 8) {
    double part[8] = {};
    for (; at + 8 <= values.size(); at += 8) {
      for (size_t i = 0; i < 8; ++i) {
        part[i] += values[at + i];
      }
    }
    total = ((part[0] + part[1]) + (part[2] + part[3])) + ((part[4] + part[5]) + (part[6] + part[7]));
  }
  return std::accumulate(values.begin() + static_cast<std::ptrdiff_t>(at), values.end(), total);
}

}  // namespace

std::vector<Choice> top_k_gates(const std::vector<float>& logits, size_t k) {
  std::vector<int> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return logits[a] > logits[b]; });
  // In double: the last bit of a float exponential differs between processors.
  std::vector<double> powers(k);
  for (size_t i = 0; i < k; ++i) {
    powers[i] = std::exp(static_cast<double>(logits[order[i]]) - static_cast<double>(logits[order[0]]));
  }
  const double total = sum(powers);
  std::vector<Choice> choices;
  for (size_t i = 0; i < k; ++i) {
    choices.push_back({order[i], static_cast<float>(powers[i] / total)});
  }
  return choices;
}

}  // namespace mars
