// Top-K expert gates, bit for bit those of mars_edge/gates.py.
#ifndef MARS_GATES_H
#define MARS_GATES_H

#include <cstddef>
#include <vector>

namespace mars {

struct Choice {
  int expert;
  float gate;
};

// The `k` largest of `logits` (finite), largest first, with their softmax weights; equal ones by index.
std::vector<Choice> top_k_gates(const std::vector<float>& logits, size_t k);

}  // namespace mars

#endif
