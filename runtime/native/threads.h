// How many threads a model runs on where nobody says, as mars_runtime/engines/threads.py.
#ifndef MARS_THREADS_H
#define MARS_THREADS_H

#include <cstdint>

#include "manifest.h"

namespace mars {

// As many as a decision with everything present has work for, from 1 to `cores`; `cores` where the manifest states no
// costs.
int32_t default_threads(const Manifest& manifest, int32_t cores);

// Processors that this process may run on.
int32_t usable_cores();

}  // namespace mars

#endif
