// The input and the answers in a manifest by which a device proves that it computes what the exporter did.
#ifndef MARS_GOLDEN_H
#define MARS_GOLDEN_H

#include "json.h"
#include "manifest.h"

namespace mars {

// Throws Error(MARS_BAD_MODEL) where a tensor does not fit its modality or a subset is unknown.
Golden read_golden(const Node& node, const Manifest& manifest);

// Of the logits those that the golden answers hold, in their order.
std::vector<float> compared(const Golden& golden, const Manifest& manifest, const std::vector<float>& logits);

}  // namespace mars

#endif
