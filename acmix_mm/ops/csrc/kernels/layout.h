// SPDX-License-Identifier: Apache-2.0
// How the pixels of a band are arranged in scratch memory. It is the same for every band of a call.
#pragma once

#include "simd.h"
#include "window.h"

namespace acmix::ISA {

// Number of result rows that the kernels compute together, so that they share loaded values.
constexpr int ROWS = 3;

// Rows are stored one after the other, and within a row its channels. The columns of the padded
// maps are de-interleaved into `stride` planes, so that the pixels that neighboring windows read
// are next to each other: column c is at `c % stride * plane + c / stride`.
template <typename T>
struct Layout {
  static constexpr int64_t lanes = Simd<T>::lanes;

  // `out_width` is the number of windows in a row.
  Layout(const Window& window, int64_t channels, int64_t out_width)
      : stride(window.stride),
        shared(window.dilation % stride == 0),
        step(shared ? window.dilation / stride : 1),
        chunk(shared ? ROWS : 1),
        width(round_up(out_width, lanes)),
        reach(window.dilation * (window.kernel_size - 1) / stride),
        // A plane holds one more column if the stride does not divide the padded width.
        plane(round_up(width + reach + (stride > 1), lanes)),
        margin(round_up(reach, lanes)),
        key_channel(row_distance<T>(stride * plane)),
        key_row(channels * key_channel),
        query_channel(row_distance<T>(margin + plane)),
        query_row(channels * query_channel) {}

  int64_t stride;
  bool shared;     // whether windows in different result rows read the same rows of pixels
  int64_t step;    // distance of the result rows whose windows do
  int64_t chunk;   // number of result rows computed together
  int64_t width;   // number of windows in a row, rounded up to whole vectors
  int64_t reach;   // distance of the first and the last column of a window within a plane
  int64_t plane;   // width of a plane
  int64_t margin;  // zeros left of the queries: sums over the queries that read a key begin there
  int64_t key_channel, key_row, query_channel, query_row;

  // Where column c of the padded map lies in a row of scratch memory.
  INLINE int64_t column(int64_t c) const { return c % stride * plane + c / stride; }

  // De-interleaves a row of `count` pixels, which begins at column `first` of the padded map.
  INLINE void deinterleave(const T* from, int64_t pixel_stride, int64_t count, int64_t first,
                           T* to) const {
    if (stride == 1 && pixel_stride == 1) {
      std::memcpy(to + first, from, count * sizeof(T));
      return;
    }
    for (int64_t start = 0; start < stride; ++start) {
      T* place = to + column(first + start);
      if (stride == 2 && pixel_stride == 1) {
        // The same loop with a constant step, which compilers vectorize.
        for (int64_t x = start; x < count; x += 2) *place++ = from[x];
      } else {
        for (int64_t x = start; x < count; x += stride) *place++ = from[x * pixel_stride];
      }
    }
  }

  // Copies such a row back: the inverse of `deinterleave`.
  INLINE void interleave(const T* from, int64_t count, int64_t first, T* to) const {
    if (stride == 1) {
      std::memcpy(to, from + first, count * sizeof(T));
      return;
    }
    for (int64_t start = 0; start < stride; ++start) {
      const T* place = from + column(first + start);
      for (int64_t x = start; x < count; x += stride) to[x] = *place++;
    }
  }

  // Calls `run(y, rows)` for every chunk of a band: its rows are y, y + step, ... in the band.
  template <typename F>
  INLINE void for_each_chunk(int64_t band_rows, F run) const {
    for (int64_t phase = 0; phase < step && phase < band_rows; ++phase) {
      const int64_t count = ceil_div(band_rows - phase, step);
      for (int64_t i = 0; i < count; i += chunk) {
        run(phase + i * step, count - i < chunk ? count - i : chunk);
      }
    }
  }
};

}  // namespace acmix::ISA
