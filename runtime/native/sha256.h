// SHA-256 (FIPS 180-4, section 6.2).
#ifndef MARS_SHA256_H
#define MARS_SHA256_H

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

namespace mars {

using Digest = std::array<uint8_t, 32>;

Digest sha256(const uint8_t* data, size_t size_bytes);

// 64 lower-case hexadecimal characters.
std::string hexadecimal(const Digest& digest);

}  // namespace mars

#endif
