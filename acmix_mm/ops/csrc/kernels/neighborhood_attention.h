// SPDX-License-Identifier: Apache-2.0
// The interface between the torch binding and the kernels of neighborhood attention.
#pragma once

#include "window.h"

namespace acmix {

// The pixel that position `index` reads on a reflection-padded axis, as numpy.pad's "reflect".
INLINE int64_t reflect(int64_t index, int64_t size) {
  const int64_t last = size - 1;
  // Without a division, which is slow, where the map is larger than its padding.
  if (index < 0) index = -index;
  if (index <= last) return index;
  if (index <= 2 * last) return 2 * last - index;
  if (last == 0) return 0;
  index %= 2 * last;
  return index > last ? 2 * last - index : index;
}

// The largest number of rows that a band reads and that belong to other bands.
INLINE int64_t halo_rows(const Window& window) { return 2 * window.padding(); }

template <typename T>
struct AttentionForward {
  BandedShape shape;
  T scale;
  Maps<const T> q, k, v;
  const T* position;  // (D, H, W), subtracted from the keys; null for none
  Maps<T> out;
  // The result is `out = weight * attention` or, if `add`, `out += weight * attention`.
  T weight;
  bool add;
  T* lse;  // (B, N, Ho, Wo): log2 of the sum of 2^(logit * log2(e)), what the backward pass needs
};

template <typename T>
struct AttentionBackward {
  BandedShape shape;
  T scale;
  Maps<const T> q, k, v;
  const T* position;  // as before
  Maps<const T> grad_out;
  T weight;  // of the attention in the result
  const T* lse;
  Maps<T> grad_q, grad_k, grad_v;
  T* grad_weight;  // (items): the gradient of the weight from each band; null for none
  // (items, 2, halo_rows, D, W): the gradients of keys and values that belong to other bands.
  T* halo;
  // (B, D, H, W): minus the gradients of the keys, summed over the heads, to which `fold_halo` adds
  // what the halo holds of them; null for none.
  T* grad_position;
};

// `forward` and `backward` compute the bands [begin, end). When all bands are done, `fold_halo`
// adds the halos of the channels [begin, end) of B * D, for all heads.
template <typename T>
struct AttentionKernels {
  void (*forward)(const AttentionForward<T>&, int64_t begin, int64_t end);
  void (*backward)(const AttentionBackward<T>&, int64_t begin, int64_t end);
  void (*fold_halo)(const AttentionBackward<T>&, int64_t begin, int64_t end);
};

}  // namespace acmix
