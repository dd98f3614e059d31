// SPDX-License-Identifier: Apache-2.0
// Neighborhood attention, forward and backward, vectorized along the rows of the maps.
//
// A band of rows of one head is copied to scratch memory: keys and values with their reflected
// border, queries times the scale. Then two loops do all of the arithmetic:
//   * `dot`: logits of up to 3 rows of queries with the window positions of one row of keys;
//   * `accumulate`: weighted sums over the rows and columns of a window.
// Sharing every loaded vector among 3 rows keeps them bound by arithmetic instead of loads. The
// backward pass runs the same two loops: dq is a sum over keys, dk and dv are sums over queries,
// with the window turned around.
#pragma once

#include "band.h"
#include "neighborhood_attention.h"

namespace acmix::ISA {

// Window columns and channels that are held in registers at a time.
constexpr int COLUMNS = VECTOR_REGISTERS >= 32 ? 7 : 4;
constexpr int CHANNELS = VECTOR_REGISTERS >= 32 ? 8 : 4;

// Weighted sums over rows `first` <= m < `last` of `source`: row i of the result takes part in
// those with begin <= m - i < end, with the weights at i * weight_row + m * weight_source +
// weight_tap.
template <typename T>
struct Sum {
  const T* source;
  int64_t source_row, source_channel;
  const int64_t* source_tap;
  const T* weight;
  int64_t weight_row, weight_source;
  const int64_t* weight_tap;
  int64_t taps, first, last, begin, end;
};

template <typename T, int R, int C, int LOW, int HIGH>
INLINE void accumulate_row(Vec<T> (&total)[R][C], const Sum<T>& sum, int64_t m) {
  const T* source = sum.source + m * sum.source_row;
  const T* weight = sum.weight + m * sum.weight_source;
  for (int64_t tap = 0; tap < sum.taps; ++tap) {
    Vec<T> w[R];
#pragma GCC unroll 8
    for (int i = LOW; i < HIGH; ++i) {
      w[i] = load(weight + i * sum.weight_row + sum.weight_tap[tap]);
    }
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) {
      const Vec<T> x = held(load(source + c * sum.source_channel + sum.source_tap[tap]));
#pragma GCC unroll 8
      for (int i = LOW; i < HIGH; ++i) total[i][c] += w[i] * x;
    }
  }
}

template <typename T, int R, int C>
INLINE void accumulate(Vec<T> (&total)[R][C], const Sum<T>& sum) {
  for (int64_t m = sum.first; m < sum.last; ++m) {
    const int64_t low = m - sum.end + 1 > 0 ? m - sum.end + 1 : 0;
    const int64_t high = m - sum.begin + 1 < R ? m - sum.begin + 1 : R;
    if (low >= high) continue;
    // The accumulators stay in registers only where their numbers are constants.
    switch (low * 4 + high) {
      case 1:
        accumulate_row<T, R, C, 0, 1>(total, sum, m);
        break;
      case 2:
        if constexpr (R > 1) accumulate_row<T, R, C, 0, 2>(total, sum, m);
        break;
      case 3:
        if constexpr (R > 2) accumulate_row<T, R, C, 0, 3>(total, sum, m);
        break;
      case 6:
        if constexpr (R > 1) accumulate_row<T, R, C, 1, 2>(total, sum, m);
        break;
      case 7:
        if constexpr (R > 2) accumulate_row<T, R, C, 1, 3>(total, sum, m);
        break;
      case 11:
        if constexpr (R > 2) accumulate_row<T, R, C, 2, 3>(total, sum, m);
        break;
    }
  }
}

// total[i] * factor[i], the first `count` lanes, to `out + i * row + c * channel`: written or, with
// ADD, added.
template <bool ADD, typename T, int R, int C>
INLINE void store_block(T* out, int64_t row, int64_t channel, const Vec<T> (&total)[R][C],
                        const Vec<T> (&factor)[R], int64_t count) {
  if (count >= Simd<T>::lanes) {
#pragma GCC unroll 8
    for (int i = 0; i < R; ++i) {
#pragma GCC unroll 8
      for (int c = 0; c < C; ++c) {
        T* place = out + i * row + c * channel;
        const Vec<T> before = ADD ? load(place) : Vec<T>{};
        store(place, ADD ? before + total[i][c] * factor[i] : total[i][c] * factor[i]);
      }
    }
  } else {
    // Loops over a copy: running numbers would drive the accumulators themselves out of registers.
    Vec<T> scaled[R][C];
#pragma GCC unroll 8
    for (int i = 0; i < R; ++i) {
#pragma GCC unroll 8
      for (int c = 0; c < C; ++c) scaled[i][c] = total[i][c] * factor[i];
    }
    for (int i = 0; i < R; ++i) {
      for (int c = 0; c < C; ++c) {
        T* place = out + i * row + c * channel;
        store(place, ADD ? load(place, count) + scaled[i][c] : scaled[i][c], count);
      }
    }
  }
}

template <typename T>
class AttentionBand : protected BandKernel<T> {
  static constexpr int64_t lanes = Simd<T>::lanes;
  using V = Vec<T>;
  using Base = BandKernel<T>;

 protected:
  using Base::band_;
  using Base::layout_;
  using Base::shape_;
  const int64_t positions_;  // of a window

  explicit AttentionBand(const BandedShape& shape)
      : Base(shape), positions_(shape.kernel_size * shape.kernel_size) {}

  // Index in (B, N, Ho, Wo) of the query at row y of the band and column x.
  int64_t query_index(int64_t y, int64_t x) const {
    const int64_t image = band_.batch * shape_.groups + band_.group;
    return (image * shape_.out_height + band_.first_row + y) * shape_.out_width + x;
  }

  int64_t query_size() const { return shape_.band_rows() * layout_.query_row; }

  // Copies keys or values, less their position if there is one.
  void copy_keys(const Maps<const T>& maps, const T* position, T* to) const {
    const int64_t padding = shape_.padding();
    for (int64_t r = 0; r < shape_.covered_rows(band_.rows); ++r) {
      const int64_t row = reflect(shape_.stride * band_.first_row + r - padding, shape_.height);
      const T* from = maps.image(band_.batch, band_.group) + maps.row_offset(row);
      for (int64_t c = 0; c < shape_.channels; ++c) {
        T* key = to + r * layout_.key_row + c * layout_.key_channel;
        const T* pixels = from + c * maps.channel_stride;
        if (position == nullptr) {
          layout_.deinterleave(pixels, maps.column_stride, shape_.width, padding, key);
        } else {
          copy_difference(pixels, maps.column_stride,
                          position + (c * shape_.height + row) * shape_.width, key);
        }
        reflect_columns(key);
      }
    }
  }

  void copy_difference(const T* from, int64_t pixel_stride, const T* position, T* key) const {
    const int64_t padding = shape_.padding();
    if (shape_.stride == 1 && pixel_stride == 1) {
      key += padding;
      for (int64_t x = 0; x < shape_.width; ++x) key[x] = from[x] - position[x];
    } else {
      for (int64_t x = 0; x < shape_.width; ++x) {
        key[layout_.column(padding + x)] = from[x * pixel_stride] - position[x];
      }
    }
  }

  void reflect_columns(T* key) const {
    const int64_t padding = shape_.padding(), width = shape_.width;
    if (shape_.stride == 1 && padding < width) {  // the same without divisions, which are slow
      T* const first = key + padding;
      T* const last = first + width - 1;
      for (int64_t x = 1; x <= padding; ++x) {
        first[-x] = first[x];
        last[x] = last[-x];
      }
      return;
    }
    for (int64_t x = 1; x <= padding; ++x) {
      key[layout_.column(padding - x)] = key[layout_.column(padding + reflect(-x, width))];
      key[layout_.column(padding + width - 1 + x)] =
          key[layout_.column(padding + reflect(width - 1 + x, width))];
    }
  }

  void copy_queries(const Maps<const T>& maps, T factor, T* to) const {
    for (int64_t r = 0; r < band_.rows; ++r) {
      for (int64_t c = 0; c < shape_.channels; ++c) {
        const T* from = maps.image(band_.batch, band_.group) + c * maps.channel_stride +
                        maps.row_offset(band_.first_row + r);
        T* row = to + r * layout_.query_row + c * layout_.query_channel + layout_.margin;
        if (maps.column_stride == 1) {
          for (int64_t x = 0; x < shape_.out_width; ++x) row[x] = factor * from[x];
        } else {
          for (int64_t x = 0; x < shape_.out_width; ++x) {
            row[x] = factor * from[x * maps.column_stride];
          }
        }
      }
    }
  }

  const T* query(const T* scratch, int64_t y, int64_t x) const {
    return scratch + y * layout_.query_row + layout_.margin + x;
  }
  int64_t chunk_query_row() const { return layout_.step * layout_.query_row; }
  // Window row 0 of the query row y; further rows of a window or a chunk follow at chunk_key_row().
  int64_t key(int64_t y, int64_t x) const { return shape_.stride * y * layout_.key_row + x; }
  int64_t chunk_key_row() const { return shape_.dilation * layout_.key_row; }

  // Dot products of query rows [0, R) with N window columns of one row of keys, summed over the
  // channels, to `out + i * out_row + n * out_column`.
  template <int R, int N>
  INLINE void dot(const T* q, const T* k, const int64_t* taps, T* out, int64_t out_row,
                  int64_t out_column) const {
    const int64_t q_row = chunk_query_row();
    V total[R][N] = {};
    for (int64_t c = 0; c < shape_.channels; ++c) {
      V x[R];
#pragma GCC unroll 8
      for (int i = 0; i < R; ++i) x[i] = load(q + i * q_row);
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) {
        const V y = held(load(k + taps[n]));
#pragma GCC unroll 8
        for (int i = 0; i < R; ++i) total[i][n] += x[i] * y;
      }
      q += layout_.query_channel;
      k += layout_.key_channel;
    }
#pragma GCC unroll 8
    for (int i = 0; i < R; ++i) {
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) store(out + i * out_row + n * out_column, total[i][n]);
    }
  }

  template <int R>
  INLINE void dot_columns(const T* q, const T* k, const int64_t* taps, T* out, int64_t out_row,
                          int64_t out_column) const {
    for (int64_t n = 0, left = shape_.kernel_size; left > 0;) {
      T* to = out + n * out_column;
      int64_t done;
      if (COLUMNS >= 7 && left >= 7) {
        dot<R, COLUMNS>(q, k, taps + n, to, out_row, out_column);
        done = COLUMNS;
      } else if (COLUMNS >= 5 && left >= 5) {
        dot<R, (COLUMNS < 5 ? 1 : 5)>(q, k, taps + n, to, out_row, out_column);
        done = 5;
      } else if (left >= 4) {
        dot<R, 4>(q, k, taps + n, to, out_row, out_column);
        done = 4;
      } else if (left == 3) {
        dot<R, 3>(q, k, taps + n, to, out_row, out_column);
        done = 3;
      } else {
        dot<R, 1>(q, k, taps + n, to, out_row, out_column);
        done = 1;
      }
      n += done;
      left -= done;
    }
  }

  // Dot products of `rows` <= 3 query rows with all keys of their windows, to
  // `out + i * out_row + position * out_position`.
  void dot_windows(const T* q, const T* k, const int64_t* taps, int64_t rows, T* out,
                   int64_t out_row, int64_t out_position) const {
    const int64_t size = shape_.kernel_size;
    for (int64_t m = 0; m < rows + size - 1; ++m) {
      const int64_t low = m - size + 1 > 0 ? m - size + 1 : 0;
      const int64_t high = m + 1 < rows ? m + 1 : rows;
      const T* q_low = q + low * chunk_query_row();
      const T* k_row = k + m * chunk_key_row();
      T* to = out + low * out_row + (m - low) * size * out_position;
      const int64_t next = out_row - size * out_position;
      switch (high - low) {
        case 1:
          dot_columns<1>(q_low, k_row, taps, to, next, out_position);
          break;
        case 2:
          dot_columns<2>(q_low, k_row, taps, to, next, out_position);
          break;
        case 3:
          dot_columns<3>(q_low, k_row, taps, to, next, out_position);
          break;
      }
    }
  }
};

template <typename T>
class ForwardBand : AttentionBand<T> {
  static constexpr int64_t lanes = Simd<T>::lanes;
  using V = Vec<T>;
  using Base = AttentionBand<T>;
  using Base::band_;
  using Base::layout_;
  using Base::positions_;
  using Base::shape_;

 public:
  explicit ForwardBand(const AttentionForward<T>& call) : Base(call.shape), call_(call) {
    scratch_.add(&k_, Base::source_size());
    scratch_.add(&v_, Base::source_size());
    scratch_.add(&q_, Base::query_size());
    scratch_.add(&weights_, ROWS * positions_ * lanes);
    // Values beyond the map may be anything: they only reach lanes that are not stored.
    scratch_.allocate_uninitialized();
    taps_.add(&key_taps_, shape_.kernel_size);
    taps_.add(&weight_taps_, shape_.kernel_size);
    taps_.allocate();
    Base::fill_taps(key_taps_);
    for (int64_t dx = 0; dx < shape_.kernel_size; ++dx) weight_taps_[dx] = dx * lanes;
  }

  void run(int64_t item) {
    band_ = shape_.band(item);
    Base::copy_keys(call_.k, call_.position, k_);
    Base::copy_keys(call_.v, nullptr, v_);
    Base::copy_queries(call_.q, call_.scale * T(LOG2_E), q_);
    layout_.for_each_chunk(band_.rows, [this](int64_t y, int64_t rows) {
      for (int64_t x = 0; x < shape_.out_width; x += lanes) {
        Base::dot_windows(Base::query(q_, y, x), k_ + Base::key(y, x), key_taps_, rows, weights_,
                          positions_ * lanes, lanes);
        switch (rows) {
          case 1:
            attend<1>(y, x);
            break;
          case 2:
            attend<2>(y, x);
            break;
          case 3:
            attend<3>(y, x);
            break;
        }
      }
    });
  }

 private:
  const AttentionForward<T>& call_;
  Scratch<int64_t> taps_;
  Scratch<T> scratch_;
  T *k_, *v_, *q_, *weights_;
  int64_t *key_taps_, *weight_taps_;

  // From logits to results, for a vector of queries in each of R rows.
  template <int R>
  void attend(int64_t y, int64_t x) {
    V factor[R];
    softmax<R>(y, x, factor);
    int64_t c = 0;
    for (; c + CHANNELS <= shape_.channels; c += CHANNELS) sum_values<R, CHANNELS>(y, x, c, factor);
    for (; c < shape_.channels; ++c) sum_values<R, 1>(y, x, c, factor);
  }

  // Turns logits into weights without their common factor, which is returned times the weight of
  // the result. The rows advance together: one alone would wait for its own results.
  template <int R>
  INLINE void softmax(int64_t y, int64_t x, V (&factor)[R]) {
    const int64_t row = positions_ * lanes;
    V top[R], total[R] = {};
#pragma GCC unroll 8
    for (int i = 0; i < R; ++i) top[i] = load(weights_ + i * row);
    for (int64_t j = lanes; j < row; j += lanes) {
#pragma GCC unroll 8
      for (int i = 0; i < R; ++i) top[i] = maximum<T>(load(weights_ + i * row + j), top[i]);
    }
    // Weights that sum to at most 1: their products with the largest numbers must not overflow.
    const T headroom = std::ceil(std::log2(T(positions_)));
    for (int i = 0; i < R; ++i) top[i] += headroom;
    for (int64_t j = 0; j < row; j += lanes) {
#pragma GCC unroll 8
      for (int i = 0; i < R; ++i) {
        const V weight = exp2(load(weights_ + i * row + j) - top[i]);
        store(weights_ + i * row + j, weight);
        total[i] += weight;
      }
    }
    T* lse = call_.lse + Base::query_index(y, x);
#pragma GCC unroll 8
    for (int i = 0; i < R; ++i) {
      store(lse + i * layout_.step * shape_.out_width, top[i] + log2(total[i]),
            shape_.out_width - x);
      factor[i] = call_.weight / total[i];
    }
  }

  template <int R, int C>
  INLINE void sum_values(int64_t y, int64_t x, int64_t c, const V (&factor)[R]) {
    const int64_t size = shape_.kernel_size, row = positions_ * lanes;
    V total[R][C] = {};
    accumulate<T, R, C>(total,
                        {v_ + Base::key(y, x) + c * layout_.key_channel, Base::chunk_key_row(),
                         layout_.key_channel, key_taps_, weights_, row - size * lanes, size * lanes,
                         weight_taps_, size, 0, R + size - 1, 0, size});
    T* out = call_.out.image(band_.batch, band_.group) + c * call_.out.channel_stride +
             (band_.first_row + y) * call_.out.row_stride + x;
    const int64_t row_stride = layout_.step * call_.out.row_stride;
    if (call_.add) {
      store_block<true, T, R, C>(out, row_stride, call_.out.channel_stride, total, factor,
                                 shape_.out_width - x);
    } else {
      store_block<false, T, R, C>(out, row_stride, call_.out.channel_stride, total, factor,
                                  shape_.out_width - x);
    }
  }
};

template <typename T>
void attention_forward(const AttentionForward<T>& call, int64_t begin, int64_t end) {
  ForwardBand<T> band(call);
  for (int64_t item = begin; item < end; ++item) band.run(item);
}

// The gradient of one band. With p = weights, s = logits and do = the gradient of the result:
//   dv_j = sum_i p_ij do_i,   ds_ij = p_ij (do_i . v_j - do_i . o_i),
//   dq_i = scale sum_j ds_ij k_j,   dk_j = scale sum_i ds_ij q_i,
// all times the weight of the attention, whose own gradient is sum_i do_i . o_i. p comes from the
// log-sum-exp of the forward pass, and do_i . o_i is sum_j p_ij (do_i . v_j). The band adds to its
// own rows of dk and dv in scratch memory; what falls on rows of other bands goes to `halo` and is
// added by `fold_halo` in a fixed order.
template <typename T>
class BackwardBand : AttentionBand<T> {
  static constexpr int64_t lanes = Simd<T>::lanes;
  using V = Vec<T>;
  using Base = AttentionBand<T>;
  using Base::band_;
  using Base::layout_;
  using Base::positions_;
  using Base::shape_;

 public:
  explicit BackwardBand(const AttentionBackward<T>& call)
      : Base(call.shape),
        call_(call),
        weight_position_(row_distance<T>(layout_.margin + layout_.plane)),
        weight_row_(positions_ * weight_position_) {
    T** const keys[] = {&k_, &v_, &grad_k_, &grad_v_};
    T** const queries[] = {&q_, &grad_};
    T** const weights[] = {&p_, &ds_};
    int64_t** const taps[] = {&key_taps_, &position_taps_, &shifts_, &shifted_weights_};
    for (T** part : keys) scratch_.add(part, Base::source_size());
    for (T** part : queries) scratch_.add(part, Base::query_size());
    for (T** part : weights) scratch_.add(part, ROWS * weight_row_);
    scratch_.add(&lse_, ROWS * layout_.width);
    scratch_.allocate();
    for (int64_t** part : taps) taps_.add(part, shape_.kernel_size);
    taps_.allocate();
    Base::fill_taps(key_taps_);
    for (int64_t dx = 0; dx < shape_.kernel_size; ++dx) position_taps_[dx] = dx * weight_position_;
  }

  void run(int64_t item) {
    band_ = shape_.band(item);
    Base::copy_keys(call_.k, call_.position, k_);
    Base::copy_keys(call_.v, nullptr, v_);
    Base::copy_queries(call_.q, call_.scale * T(LOG2_E), q_);
    Base::copy_queries(call_.grad_out, T(1), grad_);
    std::memset(grad_k_, 0, Base::source_size() * sizeof(T));
    std::memset(grad_v_, 0, Base::source_size() * sizeof(T));
    grad_weight_ = V{};
    layout_.for_each_chunk(band_.rows, [this](int64_t y, int64_t rows) {
      for (int64_t i = 0; i < rows; ++i) {
        std::memcpy(lse_ + i * layout_.width,
                    call_.lse + Base::query_index(y + i * layout_.step, 0),
                    shape_.out_width * sizeof(T));
      }
      switch (rows) {
        case 1:
          run_rows<1>(y);
          break;
        case 2:
          run_rows<2>(y);
          break;
        case 3:
          run_rows<3>(y);
          break;
      }
      add_to_keys(y, rows);
    });
    write_keys(item);
    if (call_.grad_weight != nullptr) call_.grad_weight[item] = sum<T>(grad_weight_);
  }

 private:
  const AttentionBackward<T>& call_;
  // Weights of a chunk: [row][position][margin + column]. Outside the map they are 0.
  int64_t weight_position_, weight_row_;
  Scratch<int64_t> taps_;
  Scratch<T> scratch_;
  T *k_, *v_, *grad_k_, *grad_v_, *q_, *grad_, *p_, *ds_, *lse_;
  int64_t *key_taps_, *position_taps_, *shifts_, *shifted_weights_;
  V grad_weight_;  // of the band, one sum for each lane

  template <int R>
  void run_rows(int64_t y) {
    for (int64_t x = 0; x < shape_.out_width; x += lanes) {
      T* p = p_ + layout_.margin + x;
      T* ds = ds_ + layout_.margin + x;
      Base::dot_windows(Base::query(q_, y, x), k_ + Base::key(y, x), key_taps_, R, p, weight_row_,
                        weight_position_);
      Base::dot_windows(Base::query(grad_, y, x), v_ + Base::key(y, x), key_taps_, R, ds,
                        weight_row_, weight_position_);
      for (int i = 0; i < R; ++i) {
        differentiate(p + i * weight_row_, ds + i * weight_row_, i * layout_.width + x);
      }
      int64_t c = 0;
      for (; c + CHANNELS <= shape_.channels; c += CHANNELS) sum_keys<R, CHANNELS>(y, x, c, ds);
      for (; c < shape_.channels; ++c) sum_keys<R, 1>(y, x, c, ds);
    }
  }

  // From logits and do . v to p and to ds, the latter times ln 2 because q_ is times log2(e).
  INLINE void differentiate(T* p, T* ds, int64_t x) {
    const V lse = load(lse_ + x);
    V delta{};  // do . o
    for (int64_t j = 0; j < weight_row_; j += weight_position_) {
      const V weight = exp2(load(p + j) - lse);
      store(p + j, weight);
      delta += weight * load(ds + j);
    }
    grad_weight_ += delta;
    const T factor = call_.weight, ds_factor = factor * T(1 / LOG2_E);
    for (int64_t j = 0; j < weight_row_; j += weight_position_) {
      const V weight = load(p + j);
      store(p + j, factor * weight);
      store(ds + j, ds_factor * weight * (load(ds + j) - delta));
    }
  }

  template <int R, int C>
  INLINE void sum_keys(int64_t y, int64_t x, int64_t c, const T* ds) {
    const int64_t size = shape_.kernel_size, window_row = size * weight_position_;
    V total[R][C] = {}, factor[R];
    accumulate<T, R, C>(total,
                        {k_ + Base::key(y, x) + c * layout_.key_channel, Base::chunk_key_row(),
                         layout_.key_channel, key_taps_, ds, weight_row_ - window_row, window_row,
                         position_taps_, size, 0, R + size - 1, 0, size});
    for (int i = 0; i < R; ++i) factor[i] = V{} + call_.scale * T(LOG2_E);
    T* out = call_.grad_q.image(band_.batch, band_.group) + c * call_.grad_q.channel_stride +
             (band_.first_row + y) * call_.grad_q.row_stride + x;
    store_block<false, T, R, C>(out, layout_.step * call_.grad_q.row_stride,
                                call_.grad_q.channel_stride, total, factor, shape_.out_width - x);
  }

  // Adds what the chunk's queries give to the keys and values in their windows. Key m of a column
  // is position m - i in the window of row i, and column c of a plane is tap dx in the window of
  // query c - shift(dx).
  void add_to_keys(int64_t y, int64_t rows) {
    for (int64_t phase = 0; phase < shape_.stride; ++phase) {
      int64_t taps = 0;
      for (int64_t dx = 0; dx < shape_.kernel_size; ++dx) {
        if (dx * shape_.dilation % shape_.stride != phase) continue;
        shifts_[taps] = -(dx * shape_.dilation / shape_.stride);
        shifted_weights_[taps] = position_taps_[dx] + shifts_[taps];
        ++taps;
      }
      const int64_t key_rows = rows + shape_.kernel_size - 1;
      for (int64_t x = 0; x < layout_.width + layout_.reach; x += lanes) {
        for (int64_t m = 0; m < key_rows; m += ROWS) {
          switch (key_rows - m) {
            case 1:
              add_to_key_rows<1>(y, rows, m, x, phase, taps);
              break;
            case 2:
              add_to_key_rows<2>(y, rows, m, x, phase, taps);
              break;
            default:
              add_to_key_rows<3>(y, rows, m, x, phase, taps);
              break;
          }
        }
      }
    }
  }

  template <int R>
  void add_to_key_rows(int64_t y, int64_t rows, int64_t m, int64_t x, int64_t phase, int64_t taps) {
    const int64_t key = Base::key(y, phase * layout_.plane + x) + m * Base::chunk_key_row();
    int64_t c = 0;
    for (; c + CHANNELS <= shape_.channels; c += CHANNELS) {
      add_block<R, CHANNELS>(grad_k_ + key, q_, ds_, y, rows, m, x, c, taps);
      add_block<R, CHANNELS>(grad_v_ + key, grad_, p_, y, rows, m, x, c, taps);
    }
    for (; c < shape_.channels; ++c) {
      add_block<R, 1>(grad_k_ + key, q_, ds_, y, rows, m, x, c, taps);
      add_block<R, 1>(grad_v_ + key, grad_, p_, y, rows, m, x, c, taps);
    }
  }

  template <int R, int C>
  INLINE void add_block(T* to, const T* queries, const T* weights, int64_t y, int64_t rows,
                        int64_t m, int64_t x, int64_t c, int64_t taps) {
    const int64_t size = shape_.kernel_size, window_row = size * weight_position_;
    to += c * layout_.key_channel;
    V total[R][C];
#pragma GCC unroll 8
    for (int i = 0; i < R; ++i) {
#pragma GCC unroll 8
      for (int d = 0; d < C; ++d) {
        total[i][d] = load(to + i * Base::chunk_key_row() + d * layout_.key_channel);
      }
    }
    // Row i of the sum is key m + i, which is in window row m + i - r of query row r.
    accumulate<T, R, C>(
        total,
        {Base::query(queries, y, x) + c * layout_.query_channel, Base::chunk_query_row(),
         layout_.query_channel, shifts_, weights + layout_.margin + x + m * window_row, window_row,
         weight_row_ - window_row, shifted_weights_, taps, 0, rows, m - size + 1, m + 1});
#pragma GCC unroll 8
    for (int i = 0; i < R; ++i) {
#pragma GCC unroll 8
      for (int d = 0; d < C; ++d) {
        store(to + i * Base::chunk_key_row() + d * layout_.key_channel, total[i][d]);
      }
    }
  }

  // The band's own rows of dk and dv, and the halo's, both with the reflected columns folded in.
  void write_keys(int64_t item) {
    const int64_t padding = shape_.padding();
    const int64_t first = shape_.own_begin(band_), own = shape_.own_end(band_) - first;
    const int64_t key_rows = shape_.covered_rows(band_.rows);
    const T* grads[] = {grad_k_, grad_v_};
    const Maps<T>* maps[] = {&call_.grad_k, &call_.grad_v};
    for (int which = 0; which < 2; ++which) {
      T* image = maps[which]->image(band_.batch, band_.group);
      T* halo =
          call_.halo + (item * 2 + which) * halo_rows(shape_) * shape_.channels * shape_.width;
      for (int64_t r = 0; r < key_rows; ++r) {
        const T* from = grads[which] + r * layout_.key_row;
        const int64_t row = r - padding;
        if (row >= 0 && row < own) {
          write_row(from, image + (first + row) * maps[which]->row_stride,
                    maps[which]->channel_stride);
        } else {
          write_row(from, halo + (row < 0 ? r : r - own) * shape_.channels * shape_.width,
                    shape_.width);
        }
      }
      // Rows between windows, which no query sees.
      for (int64_t row = key_rows - padding; row < own; ++row) {
        for (int64_t c = 0; c < shape_.channels; ++c) {
          std::memset(
              image + c * maps[which]->channel_stride + (first + row) * maps[which]->row_stride, 0,
              shape_.width * sizeof(T));
        }
      }
    }
  }

  void write_row(const T* from, T* to, int64_t channel_stride) const {
    const int64_t padding = shape_.padding(), width = shape_.width;
    for (int64_t c = 0; c < shape_.channels; ++c) {
      layout_.interleave(from, width, padding, to);
      for (int64_t x = 1; x <= padding; ++x) {
        to[reflect(-x, width)] += from[layout_.column(padding - x)];
        to[reflect(width - 1 + x, width)] += from[layout_.column(padding + width - 1 + x)];
      }
      from += layout_.key_channel;
      to += channel_stride;
    }
  }
};

template <typename T>
void attention_backward(const AttentionBackward<T>& call, int64_t begin, int64_t end) {
  BackwardBand<T> band(call);
  for (int64_t item = begin; item < end; ++item) band.run(item);
}

// Adds the gradients that bands computed for rows of other bands, one band after the other.
template <typename T>
void attention_fold_halo(const AttentionBackward<T>& call, int64_t begin, int64_t end) {
  const BandedShape& s = call.shape;
  const int64_t padding = s.padding(), halo_row = s.channels * s.width;
  const Maps<T>* maps[] = {&call.grad_k, &call.grad_v};
  for (int64_t channel = begin; channel < end; ++channel) {
    const int64_t image = channel / s.channels, c = channel % s.channels;
    for (int64_t n = 0; n < s.groups * s.bands(); ++n) {
      const int64_t item = image * s.groups * s.bands() + n;
      const Band band = s.band(item);
      const int64_t first = s.own_begin(band), next = s.own_end(band);
      const int64_t key_rows = s.covered_rows(band.rows);
      for (int which = 0; which < 2; ++which) {
        T* to = maps[which]->image(band.batch, band.group) + c * maps[which]->channel_stride;
        const T* from = call.halo + (item * 2 + which) * halo_rows(s) * halo_row + c * s.width;
        for (int64_t r = 0; r < key_rows; ++r) {
          if (first + r - padding >= first && first + r - padding < next) continue;
          const int64_t row = reflect(first + r - padding, s.height);
          T* target = to + row * maps[which]->row_stride;
          for (int64_t x = 0; x < s.width; ++x) target[x] += from[x];
          if (which == 0 && call.grad_position != nullptr) {
            T* position = call.grad_position + (channel * s.height + row) * s.width;
            for (int64_t x = 0; x < s.width; ++x) position[x] -= from[x];
          }
          from += halo_row;
        }
      }
    }
  }
}

}  // namespace acmix::ISA
