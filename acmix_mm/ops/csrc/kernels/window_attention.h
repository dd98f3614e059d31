// SPDX-License-Identifier: Apache-2.0
// The interface between the torch binding and the kernels of attention in windows.
#pragma once

#include "window.h"

namespace acmix {

// A batch of maps cut into square windows. They are numbered by image, row and column of windows.
struct WindowGrid {
  // Windows whose gradients of the bias are added up by one thread. It is a constant: results do
  // not depend on the number of threads.
  static constexpr int64_t GROUP = 8;

  int64_t batch, rows, columns;  // of windows
  int64_t side;                  // of a window in pixels
  int64_t heads, channels;       // of a head

  INLINE int64_t pixels() const { return side * side; }
  INLINE int64_t windows() const { return batch * rows * columns; }
  INLINE int64_t groups() const { return ceil_div(windows(), GROUP); }
  // A head of a group of windows each: the heads of a pixel are next to each other in memory.
  INLINE int64_t items() const { return groups() * heads; }
};

// What is added to the logits, times log2(e), for keys and, in rows of `distance`, queries. Beyond
// the last query it is 0.
template <typename T>
struct LogitTerms {
  int64_t distance;
  const T* bias;        // (N, M * M, distance)
  int64_t masked_rows;  // the last rows of windows, which have masks
  const T* row_masks;   // (masked_rows, M, distance), for the rows of keys
  int64_t masked_columns;
  const T* column_masks;  // (masked_columns, M, distance), for the columns of keys
};

template <typename T>
struct WindowForward {
  WindowGrid grid;
  T scale;
  LogitTerms<T> terms;
  Maps<const T> q, k, v;  // here and below, channels are next to each other
  Maps<T> out;
  T* lse;  // (windows, N, M * M): log2 of the sum of 2^(logit * log2(e))
};

template <typename T>
struct WindowBackward {
  WindowGrid grid;
  T scale;
  LogitTerms<T> terms;
  Maps<const T> q, k, v, grad_out;
  const T* lse;
  Maps<T> grad_q, grad_k, grad_v;
  T* grad_bias;  // (items, M * M, distance), laid out as the bias
};

// Compute the items [begin, end).
template <typename T>
struct WindowKernels {
  void (*forward)(const WindowForward<T>&, int64_t begin, int64_t end);
  void (*backward)(const WindowBackward<T>&, int64_t begin, int64_t end);
};

}  // namespace acmix
