// SPDX-License-Identifier: Apache-2.0
// Attention in windows, forward and backward, vectorized over the queries of a window.
//
// A head of a window is copied to scratch memory. Matrices of its pairs of pixels have a row for
// each key and a column for each query, so that maxima and sums over the keys take no steps within
// a vector. One loop, `multiply`, does nearly all of the arithmetic: it computes logits, results
// and gradients. The backward pass computes the weights again, from the log-sum-exp of the logits.
#pragma once

#include "simd.h"
#include "window_attention.h"

namespace acmix::ISA {

// The results that `multiply` holds in registers. The 49 pixels of the usual window are 7 times 7.
constexpr int PRODUCT_ROWS = VECTOR_REGISTERS >= 32 ? 7 : 6;
constexpr int PRODUCT_VECTORS = VECTOR_REGISTERS >= 32 ? 3 : 2;

// A number that is known to the compiler.
template <int N>
struct Constant {
  static constexpr int value = N;
};

// Calls `run(x, vectors)` for blocks of a row of `width` elements, which have nearly the same
// number of vectors: a `Constant`, since accumulators stay in registers only where their numbers
// are.
template <typename T, typename F>
INLINE void for_each_block(int64_t width, F run) {
  constexpr int64_t lanes = Simd<T>::lanes;
  for (int64_t x = 0, left = width / lanes; left > 0;) {
    const int64_t vectors = ceil_div(left, ceil_div(left, PRODUCT_VECTORS));
    if (vectors == 1) run(x, Constant<1>{});
    if (vectors == 2) run(x, Constant<2>{});
    if constexpr (PRODUCT_VECTORS > 2) {
      if (vectors == 3) run(x, Constant<3>{});
    }
    x += vectors * lanes;
    left -= vectors;
  }
}

// Rows of a matrix in scratch memory, each `distance` after the one before.
template <typename T>
struct Rows {
  T* data;
  int64_t distance;

  INLINE T* operator[](int64_t row) const { return data + row * distance; }
};

template <typename T, bool TRANSPOSED, int R, int V>
INLINE void multiply_block(const Rows<T>& a, const Rows<T>& b, const Rows<T>& out, int64_t inner,
                           int64_t r, int64_t x) {
  constexpr int64_t lanes = Simd<T>::lanes;
  const int64_t row = TRANSPOSED ? 1 : a.distance, step = TRANSPOSED ? a.distance : 1;
  const T* factor = a.data + r * row;
  const T* from = b.data + x;
  Vec<T> total[R][V] = {};
  for (int64_t c = 0; c < inner; ++c) {
    Vec<T> value[V];
#pragma GCC unroll 8
    for (int j = 0; j < V; ++j) value[j] = load(from + j * lanes);
#pragma GCC unroll 8
    for (int i = 0; i < R; ++i) {
      const T w = factor[i * row];
#pragma GCC unroll 8
      for (int j = 0; j < V; ++j) total[i][j] += w * value[j];
    }
    factor += step;
    from += b.distance;
  }
#pragma GCC unroll 8
  for (int i = 0; i < R; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < V; ++j) store(out[r + i] + x + j * lanes, total[i][j]);
  }
}

// out = a b for a matrix of `rows` x `inner`, given as it is or transposed, and rows of `width`
// elements, which are whole vectors.
template <bool TRANSPOSED, typename T>
void multiply(const Rows<T>& a, const Rows<T>& b, const Rows<T>& out, int64_t rows, int64_t inner,
              int64_t width) {
  for_each_block<T>(width, [&](int64_t x, auto vectors) {
    constexpr int V = decltype(vectors)::value;
    int64_t r = 0;
    for (; r + PRODUCT_ROWS <= rows; r += PRODUCT_ROWS) {
      multiply_block<T, TRANSPOSED, PRODUCT_ROWS, V>(a, b, out, inner, r, x);
    }
    for (; r < rows; ++r) multiply_block<T, TRANSPOSED, 1, V>(a, b, out, inner, r, x);
  });
}

// One head of one window at a time.
template <typename T>
class WindowHead {
 protected:
  static constexpr int64_t lanes = Simd<T>::lanes;
  using V = Vec<T>;
  const WindowGrid& grid_;
  const int64_t pixels_;
  const int64_t width_;  // of a row of queries, in whole vectors
  const int64_t depth_;  // of the channels of a pixel, in whole vectors
  int64_t window_, head_;
  Rows<const T> terms_;  // what is added to the logits of the window
  Scratch<T> scratch_;

  explicit WindowHead(const WindowGrid& grid, const LogitTerms<T>& terms)
      : grid_(grid),
        pixels_(grid.pixels()),
        width_(round_up(pixels_, lanes)),
        depth_(round_up(grid.channels, lanes)),
        given_(terms) {
    add_pairs(&masked_);
  }

  // Add to scratch memory matrices with a row for each pixel, for each channel, or for each key.
  template <typename... Matrices>
  void add_pixels(Matrices*... matrices) {
    (add(matrices, pixels_, depth_), ...);
  }
  template <typename... Matrices>
  void add_channels(Matrices*... matrices) {
    (add(matrices, grid_.channels, given_.distance), ...);
  }
  template <typename... Matrices>
  void add_pairs(Matrices*... matrices) {
    (add(matrices, pixels_, given_.distance), ...);
  }

  // Calls `run()` for each window of a group, with one head.
  template <typename F>
  INLINE void for_each_window(int64_t item, F run) {
    head_ = item % grid_.heads;
    const int64_t first = item / grid_.heads * grid_.GROUP, next = first + grid_.GROUP;
    for (window_ = first; window_ < next && window_ < grid_.windows(); ++window_) {
      add_masks();
      run();
    }
  }

  // Index in (windows, N, M * M) of the first query.
  int64_t query_index() const { return (window_ * grid_.heads + head_) * pixels_; }

  void gather(const Maps<const T>& maps, T factor, const Rows<T>& to) const {
    for_each_pixel(maps, [&](int64_t p, const T* from) {
      for (int64_t c = 0; c < grid_.channels; ++c) to[p][c] = factor * from[c];
    });
  }

  // The inverse of `gather`, with `factor(pixel)`.
  template <typename F>
  INLINE void scatter(const Rows<T>& from, F factor, const Maps<T>& maps) const {
    for_each_pixel(maps, [&](int64_t p, T* to) {
      for (int64_t c = 0; c < grid_.channels; ++c) to[c] = factor(p) * from[p][c];
    });
  }

  void transpose(const Rows<T>& from, const Rows<T>& to) const {
    for (int64_t c = 0; c < grid_.channels; ++c) {
      for (int64_t p = 0; p < pixels_; ++p) to[c][p] = from[p][c];
    }
  }

 private:
  const LogitTerms<T>& given_;
  Rows<T> masked_;

  void add(Rows<T>* matrix, int64_t rows, int64_t distance) {
    matrix->distance = distance;
    scratch_.add(&matrix->data, rows * distance);
  }

  int64_t window_row() const { return window_ / grid_.columns % grid_.rows; }
  int64_t window_column() const { return window_ % grid_.columns; }

  // Calls `run(pixel, pointer)` for each pixel of the window.
  template <typename M, typename F>
  INLINE void for_each_pixel(const M& maps, F run) const {
    const int64_t side = grid_.side, image = window_ / (grid_.rows * grid_.columns);
    auto* row = maps.image(image, head_) + window_row() * side * maps.row_stride +
                window_column() * side * maps.column_stride;
    for (int64_t p = 0; p < pixels_; row += maps.row_stride) {
      for (int64_t x = 0; x < side; ++x) run(p++, row + x * maps.column_stride);
    }
  }

  // Sets the terms to the bias or, in a window with masks, to its sum with them.
  void add_masks() {
    const int64_t distance = given_.distance, side = grid_.side;
    terms_ = {given_.bias + head_ * pixels_ * distance, distance};
    const int64_t row = window_row() - (grid_.rows - given_.masked_rows);
    const int64_t column = window_column() - (grid_.columns - given_.masked_columns);
    if (row < 0 && column < 0) return;
    for (int64_t key_row = 0, key = 0; key_row < side; ++key_row) {
      const T* row_mask = row < 0 ? nullptr : given_.row_masks + (row * side + key_row) * distance;
      for (int64_t key_column = 0; key_column < side; ++key_column, ++key) {
        const T* column_mask =
            column < 0 ? nullptr : given_.column_masks + (column * side + key_column) * distance;
        for (int64_t x = 0; x < width_; x += lanes) {
          V term = load(terms_[key] + x);
          if (row_mask != nullptr) term += load(row_mask + x);
          if (column_mask != nullptr) term += load(column_mask + x);
          store(masked_[key] + x, term);
        }
      }
    }
    terms_ = {masked_.data, distance};
  }
};

template <typename T>
class ForwardHead : WindowHead<T> {
  static constexpr int64_t lanes = Simd<T>::lanes;
  using V = Vec<T>;
  using Base = WindowHead<T>;
  using Base::depth_;
  using Base::grid_;
  using Base::pixels_;
  using Base::scratch_;
  using Base::terms_;
  using Base::width_;

 public:
  explicit ForwardHead(const WindowForward<T>& call) : Base(call.grid, call.terms), call_(call) {
    Base::add_pixels(&q_, &k_, &v_);
    Base::add_channels(&queries_);
    Base::add_pairs(&weights_);
    scratch_.add(&factors_, width_);
    scratch_.allocate();
  }

  void run(int64_t item) {
    Base::for_each_window(item, [this] {
      Base::gather(call_.q, call_.scale * T(LOG2_E), q_);
      Base::gather(call_.k, 1, k_);
      Base::gather(call_.v, 1, v_);
      Base::transpose(q_, queries_);
      multiply<false>(k_, queries_, weights_, pixels_, grid_.channels, width_);
      for_each_block<T>(width_, [&](int64_t x, auto vectors) { softmax(x, vectors); });
      const Rows<T>& result = q_;  // whose values are no longer needed
      multiply<true>(weights_, v_, result, pixels_, pixels_, depth_);
      Base::scatter(result, [this](int64_t p) { return factors_[p]; }, call_.out);
    });
  }

 private:
  const WindowForward<T>& call_;
  Rows<T> q_, k_, v_;
  Rows<T> queries_;  // transposed
  Rows<T> weights_;
  T* factors_;

  // Turns N vectors of each row of logits into weights without their common factor.
  template <int N>
  INLINE void softmax(int64_t x, Constant<N>) {
    V top[N], total[N] = {};
    for (int j = 0; j < N; ++j) {
      top[j] = load(weights_[0] + x + j * lanes) + load(terms_[0] + x + j * lanes);
    }
    for (int64_t key = 0; key < pixels_; ++key) {
      T* logits = weights_[key] + x;
#pragma GCC unroll 8
      for (int j = 0; j < N; ++j) {
        const V logit = load(logits + j * lanes) + load(terms_[key] + x + j * lanes);
        store(logits + j * lanes, logit);
        top[j] = maximum<T>(logit, top[j]);
      }
    }
    // Weights that sum to at most 1: their products with the largest numbers must not overflow.
    const T headroom = std::ceil(std::log2(T(pixels_)));
    for (int j = 0; j < N; ++j) top[j] += headroom;
    for (int64_t key = 0; key < pixels_; ++key) {
      T* weights = weights_[key] + x;
#pragma GCC unroll 8
      for (int j = 0; j < N; ++j) {
        const V weight = exp2(load(weights + j * lanes) - top[j]);
        store(weights + j * lanes, weight);
        total[j] += weight;
      }
    }
    T* lse = call_.lse + Base::query_index() + x;
    for (int j = 0; j < N; ++j) {
      const int64_t left = pixels_ - x - j * lanes;
      store(lse + j * lanes, top[j] + log2(total[j]), left);
      store(factors_ + x + j * lanes, T(1) / total[j]);
    }
  }
};

template <typename T>
void window_forward(const WindowForward<T>& call, int64_t begin, int64_t end) {
  ForwardHead<T> head(call);
  for (int64_t item = begin; item < end; ++item) head.run(item);
}

template <typename T>
class BackwardHead : WindowHead<T> {
  static constexpr int64_t lanes = Simd<T>::lanes;
  using V = Vec<T>;
  using Base = WindowHead<T>;
  using Base::depth_;
  using Base::grid_;
  using Base::pixels_;
  using Base::scratch_;
  using Base::terms_;
  using Base::width_;

 public:
  explicit BackwardHead(const WindowBackward<T>& call) : Base(call.grid, call.terms), call_(call) {
    Base::add_pixels(&q_, &k_, &v_, &grad_out_, &result_);
    Base::add_channels(&queries_, &grads_out_);
    Base::add_pairs(&weights_, &grads_);
    scratch_.allocate();
  }

  void run(int64_t item) {
    grad_bias_ = {call_.grad_bias + item * pixels_ * call_.terms.distance, call_.terms.distance};
    std::memset(grad_bias_.data, 0, pixels_ * grad_bias_.distance * sizeof(T));
    Base::for_each_window(item, [this] {
      Base::gather(call_.q, call_.scale * T(LOG2_E), q_);
      Base::gather(call_.k, 1, k_);
      Base::gather(call_.v, 1, v_);
      Base::gather(call_.grad_out, 1, grad_out_);
      Base::transpose(q_, queries_);
      Base::transpose(grad_out_, grads_out_);
      multiply<false>(k_, queries_, weights_, pixels_, grid_.channels, width_);
      multiply<false>(v_, grads_out_, grads_, pixels_, grid_.channels, width_);
      for_each_block<T>(width_, [&](int64_t x, auto vectors) { differentiate(x, vectors); });
      write<false>(weights_, grad_out_, 1, call_.grad_v);
      write<false>(grads_, q_, T(1 / LOG2_E), call_.grad_k);
      write<true>(grads_, k_, call_.scale, call_.grad_q);
    });
  }

 private:
  const WindowBackward<T>& call_;
  Rows<T> q_, k_, v_, grad_out_, result_;
  Rows<T> queries_, grads_out_;  // transposed
  Rows<T> weights_;
  Rows<T> grads_;  // of the weights, then of the logits
  Rows<T> grad_bias_;

  // Turns N vectors of each row of products into weights, and the gradients of the weights into
  // those of the logits.
  template <int N>
  INLINE void differentiate(int64_t x, Constant<N>) {
    const T* from = call_.lse + Base::query_index() + x;
    V lse[N], mean[N] = {};
    for (int j = 0; j < N; ++j) lse[j] = load(from + j * lanes, pixels_ - x - j * lanes);
    for (int64_t key = 0; key < pixels_; ++key) {
#pragma GCC unroll 8
      for (int j = 0; j < N; ++j) {
        T* place = weights_[key] + x + j * lanes;
        const V weight = exp2(load(place) + load(terms_[key] + x + j * lanes) - lse[j]);
        store(place, weight);
        mean[j] += weight * load(grads_[key] + x + j * lanes);
      }
    }
    for (int64_t key = 0; key < pixels_; ++key) {
#pragma GCC unroll 8
      for (int j = 0; j < N; ++j) {
        T* place = grads_[key] + x + j * lanes;
        T* bias = grad_bias_[key] + x + j * lanes;
        const V grad = load(weights_[key] + x + j * lanes) * (load(place) - mean[j]);
        store(place, grad);
        store(bias, load(bias) + grad);
      }
    }
  }

  // Writes factor * a b for a matrix of pairs and one of pixels.
  template <bool TRANSPOSED>
  INLINE void write(const Rows<T>& a, const Rows<T>& b, T factor, const Maps<T>& maps) {
    multiply<TRANSPOSED>(a, b, result_, pixels_, pixels_, depth_);
    Base::scatter(result_, [factor](int64_t) { return factor; }, maps);
  }
};

template <typename T>
void window_backward(const WindowBackward<T>& call, int64_t begin, int64_t end) {
  BackwardHead<T> head(call);
  for (int64_t item = begin; item < end; ++item) head.run(item);
}

}  // namespace acmix::ISA
