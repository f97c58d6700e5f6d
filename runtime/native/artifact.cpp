#include "artifact.h"

#include <cctype>
#include <cstring>

#include "error.h"
#include "sha256.h"

namespace mars {
namespace {

constexpr char kMagic[] = "MARSEDGE";
constexpr uint8_t kVersion = 1;
constexpr size_t kMagicBytes = 8;
constexpr size_t kDigestBytes = 32;
// Magic, version, program length, digest.
constexpr size_t kTrailerBytes = kMagicBytes + 1 + 8 + kDigestBytes;

bool is_executorch(const uint8_t* data, size_t size_bytes) {
  return size_bytes > 8 && data[4] == 'E' && data[5] == 'T' && std::isdigit(data[6]) && std::isdigit(data[7]);
}

uint64_t little_endian(const uint8_t* data) {
  uint64_t value = 0;
  for (size_t i = 8; i-- > 0;) {
    value = value << 8 | data[i];
  }
  return value;
}

}  // namespace

Seal verify(const uint8_t* data, size_t size_bytes, const std::string& name) {
  const uint8_t* trailer = data + size_bytes - (size_bytes < kTrailerBytes ? size_bytes : kTrailerBytes);
  if (size_bytes < kTrailerBytes || std::memcmp(trailer, kMagic, kMagicBytes) != 0) {
    if (is_executorch(data, size_bytes)) {
      throw bad_model(name + " is an ExecuTorch program without the mars-edge trailer: truncated or foreign");
    }
    throw bad_model(name + " is not a mars-edge model: " + std::to_string(size_bytes) + " bytes without a .pte trailer");
  }
  const Digest digest = sha256(data, size_bytes - kDigestBytes);
  if (std::memcmp(digest.data(), data + size_bytes - kDigestBytes, kDigestBytes) != 0) {
    throw bad_model(name + " is damaged: its SHA-256 is not the one in its trailer");
  }
  const uint8_t version = trailer[kMagicBytes];
  const uint64_t length = little_endian(trailer + kMagicBytes + 1);
  if (version != kVersion || length != size_bytes - kTrailerBytes || !is_executorch(data, size_bytes)) {
    throw bad_model(name + " has a trailer this mars-edge cannot read (version " + std::to_string(version) +
                    ", length " + std::to_string(length) + ")");
  }
  return {static_cast<size_t>(length), hexadecimal(digest)};
}

}  // namespace mars
