// What the torch binding and the kernels of neighbourhood attention share.
#pragma once

#include <cstdint>

#include "inline.h"

namespace acmix {

INLINE constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The pixel that position `index` reads on a reflection-padded axis, as numpy.pad's "reflect".
INLINE int64_t reflect(int64_t index, int64_t size) {
  const int64_t last = size - 1;
  if (last == 0) return 0;
  index %= 2 * last;
  if (index < 0) index += 2 * last;
  return index > last ? 2 * last - index : index;
}

// Maps (B, N, D, H, W) of any strides.
template <typename T>
struct Maps {
  T* data;
  int64_t batch_stride, head_stride, channel_stride, row_stride, column_stride;

  INLINE T* image(int64_t batch, int64_t head) const {
    return data + batch * batch_stride + head * head_stride;
  }
};

struct AttentionShape {
  int64_t batch, heads, channels;     // B, N, D
  int64_t height, width;              // of keys and values
  int64_t query_height, query_width;  // of queries and the result
  int64_t kernel_size, stride, dilation;

  INLINE int64_t padding() const { return dilation * (kernel_size / 2); }
  // Work is shared out in bands of rows of one head. Their number depends on the sizes alone:
  // results are the same with any number of threads.
  INLINE int64_t band_rows() const;
  INLINE int64_t bands() const { return ceil_div(query_height, band_rows()); }
  INLINE int64_t items() const { return batch * heads * bands(); }
  // Rows of padded keys that `rows` rows of queries see, and how many at most belong to others.
  INLINE int64_t key_rows(int64_t rows) const { return stride * (rows - 1) + 2 * padding() + 1; }
  INLINE int64_t halo_rows() const { return 2 * padding(); }
};

INLINE int64_t AttentionShape::band_rows() const {
  // A multiple of the 3 rows that the kernels take at a time. Enough rows that the halo costs
  // little, few enough that keys and values of a band stay in the second-level cache.
  constexpr int64_t elements = 1 << 17;
  int64_t rows = elements / (channels * stride * (width + 2 * padding()));
  rows = rows < 6 ? 6 : rows > 48 ? 48 : rows;
  const int64_t count = ceil_div(query_height, rows);
  return ceil_div(ceil_div(query_height, count), 3) * 3;
}

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
