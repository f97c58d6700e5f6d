// Area interpolation, scaling and splitting into planes in one pass over a picture.
//
// The bits are those of OpenCV's INTER_AREA (modules/imgproc, resize, for ratios that are not whole): every source row
// is summed along x from left to right, then the rows from the top down, all in float32. Only what does not change the
// order of any sum is done at once: the channels of a pixel, or, of a picture with one channel, four rows.
// Axes: H height, W width, C channels.
#include "mars_preprocess.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <exception>
#include <vector>

#if defined(__aarch64__)
#include <arm_neon.h>
#endif

// The loops below are written for the compiler to vectorise; twice as wide where the processor can. (The C library must
// be able to choose between two versions of a function.)
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define MARS_WIDE __attribute__((target_clones("avx2", "default")))
#else
#define MARS_WIDE
#endif

namespace {

constexpr int kLanes = 4;
typedef float Lanes __attribute__((vector_size(kLanes * sizeof(float))));

// A sum of products is rounded as OpenCV's builds round it: once where the processor always has the instruction.
inline float add_product(float sum, float value, float weight) {
#if defined(__aarch64__)
  return __builtin_fmaf(value, weight, sum);
#else
  return sum + value * weight;
#endif
}

inline Lanes add_product(Lanes sum, Lanes value, Lanes weight) {
#if defined(__aarch64__)
  return reinterpret_cast<Lanes>(vfmaq_f32(
      reinterpret_cast<float32x4_t>(sum), reinterpret_cast<float32x4_t>(value), reinterpret_cast<float32x4_t>(weight)));
#else
  return sum + value * weight;
#endif
}

// Half to even; right for every value of 16 bits.
inline float rounded(float value) {
  constexpr float kPush = 12582912.0f;  // 1.5 * 2^23: the sum has no room for fractions
  return (value + kPush) - kPush;
}

inline float clipped(float value, float low, float high) {
  const float least = value > low ? value : low;
  return least < high ? least : high;
}

struct Share {
  int to, from;
  float weight;
};

// Which share of each source pixel falls into each target pixel, along one axis.
std::vector<Share> shares(int from, int to, double scale) {
  std::vector<Share> found;
  for (int at = 0; at < to; ++at) {
    const double begin = at * scale, end = begin + scale, cell = std::min(scale, from - begin);
    const int last = std::min(static_cast<int>(std::floor(end)), from - 1);
    const int first = std::min(static_cast<int>(std::ceil(begin)), last);
    if (first - begin > 1e-3) {
      found.push_back({at, first - 1, static_cast<float>((first - begin) / cell)});
    }
    for (int i = first; i < last; ++i) {
      found.push_back({at, i, static_cast<float>(1.0 / cell)});
    }
    if (end - last > 1e-3) {
      found.push_back({at, last, static_cast<float>(std::min(std::min(end - last, 1.0), cell) / cell)});
    }
  }
  return found;
}

// The shares along x as equally many neighbours for every target column: those that are too many weigh nothing, which
// changes no sum.
struct Columns {
  int count, taps = 0;
  std::vector<int> first;      // offset of the first neighbour, in values
  std::vector<Lanes> weights;  // count x taps

  Columns(const std::vector<Share>& all, int from, int to, int step) : count(to), first(to, -1) {
    std::vector<int> found(to);
    for (const Share& share : all) {
      taps = std::max(taps, ++found[share.to]);
    }
    weights.resize(static_cast<size_t>(to) * taps);
    for (const Share& share : all) {
      int& begin = first[share.to];
      begin = begin < 0 ? std::min(share.from, from - taps) : begin;
      const float weight = share.weight;
      weights[static_cast<size_t>(share.to) * taps + (share.from - begin)] = Lanes{weight, weight, weight, weight};
    }
    std::for_each(first.begin(), first.end(), [step](int& begin) { begin *= step; });
  }
};

template <int kTaps>
inline void sum_columns_of(const Columns& columns, const float* row, int step, float* sums) {
  const int taps = kTaps > 0 ? kTaps : columns.taps, count = columns.count;
  const int* first = columns.first.data();
  const Lanes* weights = columns.weights.data();
  for (int x = 0; x < count; ++x, weights += taps) {
    const float* value = row + first[x];
    Lanes sum = {};
    for (int tap = 0; tap < taps; ++tap, value += step) {
      Lanes lanes;
      std::memcpy(&lanes, value, sizeof(lanes));
      sum = add_product(sum, lanes, weights[tap]);
    }
    std::memcpy(sums + kLanes * x, &sum, sizeof(sum));
  }
}

// The usual numbers of neighbours are unrolled.
MARS_WIDE void sum_columns(const Columns& columns, const float* row, int step, float* sums) {
  switch (columns.taps) {
    case 4: return sum_columns_of<4>(columns, row, step, sums);
    case 5: return sum_columns_of<5>(columns, row, step, sums);
    case 6: return sum_columns_of<6>(columns, row, step, sums);
    case 7: return sum_columns_of<7>(columns, row, step, sums);
    default: return sum_columns_of<0>(columns, row, step, sums);
  }
}

MARS_WIDE void weigh(const float* line, int count, float weight, float* sums) {
  for (int i = 0; i < count; ++i) {
    sums[i] = weight * line[i];
  }
}

MARS_WIDE void add_weighed(const float* line, int count, float weight, float* sums) {
  for (int i = 0; i < count; ++i) {
    sums[i] = add_product(sums[i], line[i], weight);
  }
}

// Four lines to one of four-value groups, and back.
template <typename T>
inline void interleave_of(const T* const* lines, int count, T* mixed) {
  const T *a = lines[0], *b = lines[1], *c = lines[2], *d = lines[3];
  for (int i = 0; i < count; ++i) {
    mixed[kLanes * i] = a[i];
    mixed[kLanes * i + 1] = b[i];
    mixed[kLanes * i + 2] = c[i];
    mixed[kLanes * i + 3] = d[i];
  }
}

MARS_WIDE void interleave(const uint8_t* const* lines, int count, uint8_t* mixed) {
  interleave_of(lines, count, mixed);
}

MARS_WIDE void interleave(const uint16_t* const* lines, int count, uint16_t* mixed) {
  interleave_of(lines, count, mixed);
}

MARS_WIDE void interleave(const float* const* lines, int count, float* mixed) {
  interleave_of(lines, count, mixed);
}

MARS_WIDE void separate(const float* mixed, int count, float* const* lines) {
  float *a = lines[0], *b = lines[1], *c = lines[2], *d = lines[3];
  for (int i = 0; i < count; ++i) {
    a[i] = mixed[kLanes * i];
    b[i] = mixed[kLanes * i + 1];
    c[i] = mixed[kLanes * i + 2];
    d[i] = mixed[kLanes * i + 3];
  }
}

// What is averaged of every pixel.
MARS_WIDE void to_real(const uint8_t* pixels, int count, const mars_planes&, float* values) {
  for (int i = 0; i < count; ++i) {
    values[i] = pixels[i];
  }
}

MARS_WIDE void to_real(const uint16_t* pixels, int count, const mars_planes&, float* values) {
  for (int i = 0; i < count; ++i) {
    values[i] = pixels[i];
  }
}

MARS_WIDE void to_real(const float* pixels, int count, const mars_planes& planes, float* values) {
  const float low = planes.low, high = planes.high;
  for (int i = 0; i < count; ++i) {
    values[i] = clipped(pixels[i], low, high);
  }
}

MARS_WIDE void to_measured(const float* values, int count, float* measured) {
  for (int i = 0; i < count; ++i) {
    measured[i] = values[i] != 0.0f ? 1.0f : 0.0f;
  }
}

MARS_WIDE bool has_zero(const uint16_t* pixels, int count) {
  uint16_t found = 0;
  for (int i = 0; i < count; ++i) {
    found |= pixels[i] == 0;
  }
  return found != 0;
}

MARS_WIDE bool all_finite(const float* pixels, int count) {
  uint32_t bad = 0;
  for (int i = 0; i < count; ++i) {
    uint32_t bits;
    std::memcpy(&bits, pixels + i, sizeof(bits));
    bad |= (bits & 0x7f800000u) == 0x7f800000u;
  }
  return bad == 0;
}

// Back to the element type of the picture, as a resized picture has it; `top` is 0 for floats.
MARS_WIDE void quantise(float* values, int count, float top) {
  for (int i = 0; i < count; ++i) {
    values[i] = clipped(rounded(values[i]), 0.0f, top);
  }
}

// Under half measured is a hole; the mean over the measured part otherwise.
MARS_WIDE void mean_of_measured(float* totals, const float* measured, int count) {
  for (int i = 0; i < count; ++i) {
    // Divided everywhere: a branch would keep the loop from being vectorised.
    const float mean = totals[i] / (measured[i] >= 0.5f ? measured[i] : 1.0f);
    totals[i] = measured[i] >= 0.5f ? mean : 0.0f;
  }
}

MARS_WIDE void scale(const float* values, int count, const mars_planes& planes, float* scaled) {
  const float low = planes.low, high = planes.high, factor = planes.factor;
  for (int i = 0; i < count; ++i) {
    scaled[i] = clipped((clipped(values[i], low, high) - low) * factor, 0.0f, 1.0f);
  }
}

template <typename T>
const T* row_of(const mars_picture& picture, int y) {
  return reinterpret_cast<const T*>(static_cast<const char*>(picture.data) + y * picture.row_bytes);
}

bool has_hole(const mars_picture& picture) {
  for (int y = 0; picture.type == MARS_UINT16 && y < picture.height; ++y) {
    if (has_zero(row_of<uint16_t>(picture, y), picture.width * picture.channels)) {
      return true;
    }
  }
  return false;
}

bool has_only_finite(const mars_picture& picture) {
  for (int y = 0; picture.type == MARS_FLOAT32 && y < picture.height; ++y) {
    if (!all_finite(row_of<float>(picture, y), picture.width * picture.channels)) {
      return false;
    }
  }
  return true;
}

// Source rows summed along x: for one channel four rows at a time. A line holds the sums of the values, then, where
// the picture has holes, of what was measured.
template <typename T>
class Lines {
 public:
  Lines(const mars_picture& picture, const mars_planes& planes, const std::vector<Share>& along_x, bool holes)
      : picture_(picture),
        planes_(planes),
        rows_(picture.channels == 1 ? kLanes : 1),
        step_(picture.channels == 1 ? kLanes : picture.channels),
        part_(picture.channels == 1 ? planes.width : planes.width * kLanes),
        parts_(holes ? 2 : 1),
        columns_(along_x, picture.width, planes.width, step_),
        mixed_(rows_ == 1 ? 0 : static_cast<size_t>(picture.width) * kLanes),
        // The last pixel is read as four values too.
        values_(static_cast<size_t>(picture.width) * step_ + kLanes),
        measured_(holes ? values_.size() : 0),
        sums_(rows_ == 1 ? 0 : static_cast<size_t>(planes.width) * kLanes),
        lines_(static_cast<size_t>(rows_) * parts_ * part_) {}

  int length() const { return parts_ * part_; }

  // Valid until the next call.
  const float* line(int y) {
    if (y < first_ || y >= first_ + rows_ || first_ < 0) {
      first_ = y - y % rows_;
      read();
    }
    return lines_.data() + static_cast<size_t>(y - first_) * length();
  }

 private:
  void read() {
    const int count = picture_.width * step_;
    to_real(pixels(), count, planes_, values_.data());
    sum(values_.data(), lines_.data());
    if (parts_ == 2) {
      to_measured(values_.data(), count, measured_.data());
      sum(measured_.data(), lines_.data() + part_);
    }
  }

  const T* pixels() {
    if (rows_ == 1) {
      return row_of<T>(picture_, first_);
    }
    const T* rows[kLanes];
    for (int i = 0; i < kLanes; ++i) {
      rows[i] = row_of<T>(picture_, std::min(first_ + i, picture_.height - 1));
    }
    interleave(rows, picture_.width, mixed_.data());
    return mixed_.data();
  }

  void sum(const float* values, float* to) {
    if (rows_ == 1) {
      return sum_columns(columns_, values, step_, to);
    }
    sum_columns(columns_, values, step_, sums_.data());
    float* const lines[kLanes] = {to, to + length(), to + 2 * length(), to + 3 * length()};
    separate(sums_.data(), planes_.width, lines);
  }

  const mars_picture& picture_;
  const mars_planes& planes_;
  const int rows_, step_, part_, parts_;
  const Columns columns_;
  std::vector<T> mixed_;
  std::vector<float> values_, measured_, sums_, lines_;
  int first_ = -1;
};

// One finished row of the smaller picture into every plane; `sums` is overwritten.
void write(std::vector<float>& sums, int y, const mars_picture& picture, const mars_planes& planes, bool holes) {
  const int length = picture.channels == 1 ? planes.width : planes.width * kLanes;
  if (holes) {
    mean_of_measured(sums.data(), sums.data() + length, length);
  }
  if (picture.type != MARS_FLOAT32) {
    quantise(sums.data(), length, picture.type == MARS_UINT8 ? 255.0f : 65535.0f);
  }
  float* const to = planes.data + static_cast<size_t>(y) * planes.width;
  if (picture.channels == 1) {
    scale(sums.data(), length, planes, to);
    return;
  }
  scale(sums.data(), length, planes, sums.data());
  std::vector<float> rest(planes.width);
  float* rows[kLanes];
  for (int c = 0; c < kLanes; ++c) {
    const size_t plane = static_cast<size_t>(planes.height) * planes.width;
    rows[c] = c < picture.channels ? to + c * plane : rest.data();
  }
  separate(sums.data(), planes.width, rows);
}

template <typename T>
void shrink(const mars_picture& picture, const mars_planes& planes, double scale_y, double scale_x) {
  const bool holes = has_hole(picture);
  Lines<T> lines(picture, planes, shares(picture.width, planes.width, scale_x), holes);
  std::vector<float> sums(lines.length());
  int at = -1;
  for (const Share& share : shares(picture.height, planes.height, scale_y)) {
    const float* line = lines.line(share.from);
    if (share.to == at) {
      add_weighed(line, lines.length(), share.weight, sums.data());
      continue;
    }
    if (at >= 0) {
      write(sums, at, picture, planes, holes);
    }
    at = share.to;
    weigh(line, lines.length(), share.weight, sums.data());
  }
  write(sums, at, picture, planes, holes);
}

bool is_whole(double scale) {
  return std::fabs(scale - std::nearbyint(scale)) < DBL_EPSILON;
}

}  // namespace

int32_t mars_shrink(const mars_picture* picture, const mars_planes* planes) {
  if (picture->channels < 1 || picture->channels > kLanes || planes->height < 1 || planes->width < 1 ||
      picture->height < planes->height || picture->width < planes->width) {
    return 1;
  }
  // Rounded twice, as OpenCV does.
  const double scale_y = 1.0 / (static_cast<double>(planes->height) / picture->height);
  const double scale_x = 1.0 / (static_cast<double>(planes->width) / picture->width);
  if ((is_whole(scale_y) && is_whole(scale_x)) || !has_only_finite(*picture)) {
    return 1;
  }
  try {
    switch (picture->type) {
      case MARS_UINT8: shrink<uint8_t>(*picture, *planes, scale_y, scale_x); return 0;
      case MARS_UINT16: shrink<uint16_t>(*picture, *planes, scale_y, scale_x); return 0;
      case MARS_FLOAT32: shrink<float>(*picture, *planes, scale_y, scale_x); return 0;
      default: return 1;
    }
  } catch (const std::exception&) {
    return 1;
  }
}

int32_t mars_preprocess_abi(void) {
  return MARS_PREPROCESS_ABI;
}
