// SPDX-License-Identifier: Apache-2.0
// The interface between the torch binding and the kernels of neighborhood attention.
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

// The largest number of rows that a band reads and that belong to other bands.
INLINE int64_t halo_rows(const Window& window) { return 2 * window.padding(); }

template <typename T>
struct AttentionForward {
  BandedShape shape;
  T scale;
  Maps<const T> q, k, v;
  Maps<T> out;
  T* lse;  // (B, N, Ho, Wo): log2 of the sum of 2^(logit * log2(e)), what the backward pass needs
};

template <typename T>
struct AttentionBackward {
  BandedShape shape;
  T scale;
  Maps<const T> q, k, v, out, grad_out;
  const T* lse;
  Maps<T> grad_q, grad_k, grad_v;
  // (items, 2, halo_rows, D, W): the gradients of keys and values that belong to other bands.
  T* halo;
};

// `forward` and `backward` compute the bands [begin, end). When all bands are done, `fold_halo`
// adds the halos of the images [begin, end) of B * N.
template <typename T>
struct AttentionKernels {
  void (*forward)(const AttentionForward<T>&, int64_t begin, int64_t end);
  void (*backward)(const AttentionBackward<T>&, int64_t begin, int64_t end);
  void (*fold_halo)(const AttentionBackward<T>&, int64_t begin, int64_t end);
};

}  // namespace acmix
