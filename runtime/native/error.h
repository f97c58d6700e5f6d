// What the C++ code throws; the C interface turns it into a number and one line.
#ifndef MARS_ERROR_H
#define MARS_ERROR_H

#include <stdexcept>
#include <string>

#include "mars_model.h"

namespace mars {

// `code` is the exit code of mars_edge/errors.py for the same mistake.
class Error : public std::runtime_error {
 public:
  Error(int code, const std::string& message) : std::runtime_error(message), code(code) {}
  const int code;
};

inline Error engine_error(const std::string& message) {
  return Error(MARS_ENGINE, message);
}

inline Error usage_error(const std::string& message) {
  return Error(MARS_USAGE, message);
}

inline Error bad_model(const std::string& message) {
  return Error(MARS_BAD_MODEL, message);
}

}  // namespace mars

#endif
