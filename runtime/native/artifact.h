// A .pte that proves itself whole; the format is described in mars_edge/artifact.py.
#ifndef MARS_ARTIFACT_H
#define MARS_ARTIFACT_H

#include <cstddef>
#include <cstdint>
#include <string>

namespace mars {

struct Seal {
  size_t program_bytes;
  std::string digest;  // 64 hexadecimal characters
};

// Throws Error(MARS_BAD_MODEL) where the bytes are no artifact or one of them is not as it was written.
Seal verify(const uint8_t* data, size_t size_bytes, const std::string& name);

}  // namespace mars

#endif
