// One input of a model, as its manifest describes it; the rules are those of mars_edge/modality.py.
#ifndef MARS_MODALITY_H
#define MARS_MODALITY_H

#include "json.h"
#include "manifest.h"

namespace mars {

// Without its feature shape, which stands elsewhere. Throws Error(MARS_BAD_MODEL).
Modality read_modality(const Node& node);

}  // namespace mars

#endif
