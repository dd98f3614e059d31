// SPDX-License-Identifier: Apache-2.0
// The geometry of sliding windows, and how the work is divided. Shared by neighborhood attention
// and the shifted convolution.
#pragma once

#include <cstdint>

#include "inline.h"

namespace acmix {

INLINE constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// A tensor (B, N, D, H, W) with any strides. Its memory may hold a few rows only: then row r takes
// the place of row r - rows_held.
template <typename T>
struct Maps {
  T* data;
  int64_t batch_stride, head_stride, channel_stride, row_stride, column_stride;
  int64_t rows_held = INT64_MAX;

  INLINE int64_t row_offset(int64_t row) const { return row % rows_held * row_stride; }

  INLINE T* image(int64_t batch, int64_t head) const {
    return data + batch * batch_stride + head * head_stride;
  }
};

struct Window {
  int64_t kernel_size, stride, dilation;

  INLINE int64_t padding() const { return dilation * (kernel_size / 2); }
  // Number of rows of the padded map that the windows of `rows` result rows cover.
  INLINE int64_t covered_rows(int64_t rows) const {
    return stride * (rows - 1) + dilation * (kernel_size - 1) + 1;
  }
};

// Consecutive rows of the result for one image and one group: the unit of work of a thread.
struct Band {
  int64_t batch, group, first_row, rows;
};

// Windows over the maps of a batch. Their results are divided into bands, numbered by image, group
// and first row.
struct BandedShape : Window {
  static constexpr int64_t FEWEST_ROWS = 6, MOST_ROWS = 48;  // of a band, if there are as many

  int64_t batch;
  int64_t groups;                 // heads of the attention, or groups of the convolution
  int64_t channels;               // that a window reads in each group
  int64_t height, width;          // of the maps that the windows read
  int64_t out_height, out_width;  // of the results, one per window
  int64_t chosen_rows = 0;        // of a band; 0 chooses by the sizes

  // Number of rows in every band but perhaps the last. If it is not chosen, it is a multiple of the
  // 3 rows that kernels process together, small enough for a band to stay in the second-level
  // cache, and large enough to read few rows twice. It depends on the sizes alone: results are the
  // same with any number of threads.
  INLINE int64_t band_rows() const {
    if (chosen_rows > 0) return chosen_rows;
    constexpr int64_t cached_elements = 1 << 17;
    int64_t most = cached_elements / (channels * stride * (width + 2 * padding()));
    most = most < FEWEST_ROWS ? FEWEST_ROWS : most > MOST_ROWS ? MOST_ROWS : most;
    return ceil_div(ceil_div(out_height, ceil_div(out_height, most)), 3) * 3;
  }
  INLINE int64_t bands() const { return ceil_div(out_height, band_rows()); }
  INLINE int64_t items() const { return batch * groups * bands(); }

  INLINE Band band(int64_t item) const {
    const int64_t count = bands(), size = band_rows();
    const int64_t first_row = item % count * size, left = out_height - first_row;
    return {item / count / groups, item / count % groups, first_row, left < size ? left : size};
  }

  // Every row of the maps belongs to one band, those between windows too: [own_begin, own_end).
  INLINE int64_t own_begin(const Band& band) const { return stride * band.first_row; }
  INLINE int64_t own_end(const Band& band) const {
    const int64_t next = stride * (band.first_row + band.rows);
    return next < height ? next : height;
  }
};

}  // namespace acmix
