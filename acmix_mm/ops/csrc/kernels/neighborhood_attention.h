// SPDX-License-Identifier: Apache-2.0
// What the torch binding and the kernels of neighbourhood attention share.
#pragma once

#include "window.h"

namespace acmix {

// The pixel that position `index` reads on a reflection-padded axis, as numpy.pad's "reflect".
INLINE int64_t reflect(int64_t index, int64_t size) {
  const int64_t last = size - 1;
  if (last == 0) return 0;
  index %= 2 * last;
  if (index < 0) index += 2 * last;
  return index > last ? 2 * last - index : index;
}

struct AttentionShape : Window {
  int64_t batch, heads, channels;     // B, N, D
  int64_t height, width;              // of keys and values
  int64_t query_height, query_width;  // of queries and the result

  INLINE int64_t band_rows() const {
    return acmix::band_rows(query_height, channels * stride * (width + 2 * padding()));
  }
  INLINE int64_t bands() const { return ceil_div(query_height, band_rows()); }
  INLINE int64_t items() const { return batch * heads * bands(); }
  // Of the rows of keys that a band sees, the most that belong to other bands.
  INLINE int64_t halo_rows() const { return 2 * padding(); }
};

template <typename T>
struct AttentionForward {
  AttentionShape shape;
  T scale;
  Maps<const T> q, k, v;
  Maps<T> out;
  T* lse;  // (B, N, Ho, Wo): log2 of the sum of 2^(logit * log2(e)), what the backward pass needs
};

template <typename T>
struct AttentionBackward {
  AttentionShape shape;
  T scale;
  Maps<const T> q, k, v, out, grad_out;
  const T* lse;
  Maps<T> grad_q, grad_k, grad_v;
  // (items, 2, halo_rows, D, W): what a band adds to rows of keys and values of other bands.
  T* halo;
};

// Each runs the bands [begin, end); `fold_halo` runs images [begin, end) of B * N when all bands
// are done.
template <typename T>
struct AttentionKernels {
  void (*forward)(const AttentionForward<T>&, int64_t begin, int64_t end);
  void (*backward)(const AttentionBackward<T>&, int64_t begin, int64_t end);
  void (*fold_halo)(const AttentionBackward<T>&, int64_t begin, int64_t end);
};

}  // namespace acmix
