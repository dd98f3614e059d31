// SPDX-License-Identifier: Apache-2.0
// Where a band's pixels lie in scratch memory, the same for every band of a call.
#pragma once

#include "simd.h"
#include "window.h"

namespace acmix::ISA {

// Rows of results that the kernels take at a time, to share what they load.
constexpr int ROWS = 3;

// Rows are stored one by one, each with its channels one after the other. Columns of the padded
// maps are de-interleaved into `stride` planes, so that neighbouring windows find their pixels side
// by side; column c is at `c % stride * plane + c / stride`.
template <typename T>
struct Layout {
  static constexpr int64_t lanes = Simd<T>::lanes;

  // `query_width` is the number of windows in a row.
  Layout(const Window& window, int64_t channels, int64_t query_width)
      : stride(window.stride),
        shared(window.dilation % stride == 0),
        step(shared ? window.dilation / stride : 1),
        chunk(shared ? ROWS : 1),
        width(round_up(query_width, lanes)),
        reach(window.dilation * (window.kernel_size - 1) / stride),
        // The last padded columns may begin one more place where the stride does not divide them.
        plane(round_up(width + reach + (stride > 1), lanes)),
        margin(round_up(reach, lanes)),
        key_channel(row_distance<T>(stride * plane)),
        key_row(channels * key_channel),
        query_channel(row_distance<T>(margin + plane)),
        query_row(channels * query_channel) {}

  int64_t stride;
  bool shared;     // whether windows in different rows have rows of pixels in common
  int64_t step;    // between the rows of windows that do
  int64_t chunk;   // rows of windows taken at a time
  int64_t width;   // windows in a row, in whole vectors
  int64_t reach;   // of a window within a plane
  int64_t plane;   // width of a plane
  int64_t margin;  // zeros left of the queries: a key's queries may begin outside the map
  int64_t key_channel, key_row, query_channel, query_row;

  // Column c of the padded map in a row of scratch memory.
  INLINE int64_t column(int64_t c) const { return c % stride * plane + c / stride; }

  // Deals a row of `count` pixels to the planes, from column `first` of the padded map on.
  INLINE void deal(const T* from, int64_t pixel_stride, int64_t count, int64_t first, T* to) const {
    if (stride == 1 && pixel_stride == 1) {
      std::memcpy(to + first, from, count * sizeof(T));
      return;
    }
    for (int64_t start = 0; start < stride; ++start) {
      T* place = to + column(first + start);
      if (stride == 2 && pixel_stride == 1) {
        // The same loop with a constant step, which compilers vectorise.
        for (int64_t x = start; x < count; x += 2) *place++ = from[x];
      } else {
        for (int64_t x = start; x < count; x += stride) *place++ = from[x * pixel_stride];
      }
    }
  }

  // The other way round.
  INLINE void collect(const T* from, int64_t count, int64_t first, T* to) const {
    if (stride == 1) {
      std::memcpy(to, from + first, count * sizeof(T));
      return;
    }
    for (int64_t start = 0; start < stride; ++start) {
      const T* place = from + column(first + start);
      for (int64_t x = start; x < count; x += stride) to[x] = *place++;
    }
  }

  // Calls `run(y, rows)` for the chunks of a band: rows y, y + step, ..., counted in the band.
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
