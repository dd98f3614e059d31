// SPDX-License-Identifier: Apache-2.0
// Windows of pixels, as attention and convolution know them.
#pragma once

#include <cstdint>

#include "inline.h"

namespace acmix {

INLINE constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Maps (B, N, D, H, W) of any strides.
template <typename T>
struct Maps {
  T* data;
  int64_t batch_stride, head_stride, channel_stride, row_stride, column_stride;

  INLINE T* image(int64_t batch, int64_t head) const {
    return data + batch * batch_stride + head * head_stride;
  }
};

struct Window {
  int64_t kernel_size, stride, dilation;

  INLINE int64_t padding() const { return dilation * (kernel_size / 2); }
  // Rows of the padded map that the windows of `rows` rows cover.
  INLINE int64_t covered_rows(int64_t rows) const {
    return stride * (rows - 1) + dilation * (kernel_size - 1) + 1;
  }
};

// Work is shared out in bands of `rows` rows. A multiple of the 3 rows that kernels take at a time,
// few enough to stay in the second-level cache when a row has `row_size` elements, but enough that
// the halo costs little. It depends on sizes alone: results are the same with any number of
// threads.
INLINE int64_t band_rows(int64_t rows, int64_t row_size) {
  constexpr int64_t elements = 1 << 17;
  int64_t most = elements / row_size;
  most = most < 6 ? 6 : most > 48 ? 48 : most;
  const int64_t bands = ceil_div(rows, most);
  return ceil_div(ceil_div(rows, bands), 3) * 3;
}

}  // namespace acmix
