// A C interface to the shrinking of pictures, bit for bit that of mars_edge/preprocess.py; needs no other library.
#ifndef MARS_PREPROCESS_H
#define MARS_PREPROCESS_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

#define MARS_PREPROCESS_ABI 1

enum { MARS_UINT8 = 0, MARS_UINT16 = 1, MARS_FLOAT32 = 2 };

// (H, W, C) pixels; the channels of a pixel and the pixels of a row lie side by side, rows `row_bytes` apart.
typedef struct {
  const void* data;
  int64_t row_bytes;
  int32_t type;
  int32_t height, width, channels;  // 1 to 4 channels
} mars_picture;

// The network's tensor: (C, height, width) float32, `low` to `high` mapped to 0..1 by `factor`.
typedef struct {
  float* data;
  int32_t height, width;
  float low, high, factor;
} mars_planes;

// 0: `planes` is filled. 1: it is not, for the caller to do it the general way: sides that grow, stay as they are or
// shrink by whole numbers, a value that is not finite, more than 4 channels, no memory.
int32_t mars_shrink(const mars_picture* picture, const mars_planes* planes);

int32_t mars_preprocess_abi(void);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif

#endif
