#include "threads.h"

#ifdef __linux__
#include <sched.h>
#endif

#include <algorithm>
#include <thread>

namespace mars {
namespace {

constexpr double kMacsPerThread = 125e6;
constexpr double kMacsPerThreadInt8 = 500e6;
constexpr int32_t kMost = 256;

}  // namespace

int32_t default_threads(const Manifest& manifest, int32_t cores) {
  const double most = std::clamp(cores, 1, kMost);
  const double each = manifest.precision == "int8" ? kMacsPerThreadInt8 : kMacsPerThread;
  return static_cast<int32_t>(manifest.macs ? std::clamp(*manifest.macs / each, 1.0, most) : most);
}

int32_t usable_cores() {
#ifdef __linux__
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof(allowed), &allowed) == 0) {
    return CPU_COUNT(&allowed);
  }
#endif
  return static_cast<int32_t>(std::thread::hardware_concurrency());
}

}  // namespace mars
