// SPDX-License-Identifier: Apache-2.0
// Grouped convolution with few inputs and outputs per group, vectorized along the rows.
//
// A band of rows of one group is copied to scratch memory with its border of zeros. Then every
// loaded vector serves 4 outputs in 3 rows, so that arithmetic is the limit, not loads.
#pragma once

#include "band.h"
#include "shift_conv.h"

namespace acmix::ISA {

constexpr int OUTPUTS = 4;
// Vectors of a row, and inputs of a weight's gradient, that are held in registers at a time.
constexpr int PAIR = VECTOR_REGISTERS >= 32 ? 2 : 1;

template <typename T>
class ConvBand : protected BandKernel<T> {
  using Base = BandKernel<T>;

 protected:
  using Base::band_;
  using Base::layout_;
  using Base::shape_;

  explicit ConvBand(const BandedShape& shape) : Base(shape) {}

  // The border's columns, and those between spread inputs, are 0 from the start and stay so. A
  // strided convolution is never spread.
  void copy_inputs(const Maps<const T>* maps, int64_t spread, bool constant, T* to) const {
    const int64_t given = shape_.channels - constant;
    for (int64_t r = 0; r < shape_.covered_rows(band_.rows); ++r, to += layout_.key_row) {
      const int64_t position = shape_.stride * band_.first_row + r - shape_.padding();
      const int64_t row = position / spread;
      if (position < 0 || position % spread != 0 || row >= shape_.height) {
        std::memset(to, 0, layout_.key_row * sizeof(T));
        continue;
      }
      for (int64_t m = 0; m < given; ++m) {
        const Maps<const T>& map = maps[m];
        copy_row(map.image(band_.batch, 0) + band_.group * map.channel_stride + map.row_offset(row),
                 map.column_stride, spread, to + m * layout_.key_channel);
      }
      if (constant) {
        T* ones = to + given * layout_.key_channel;
        for (int64_t x = 0; x < shape_.width; ++x) ones[layout_.column(shape_.padding() + x)] = 1;
      }
    }
  }

  void copy_row(const T* from, int64_t column_stride, int64_t spread, T* to) const {
    const int64_t padding = shape_.padding();
    if (spread == 1) {
      layout_.deinterleave(from, column_stride, shape_.width, padding, to);
    } else {
      for (int64_t x = 0; x < shape_.width; ++x) to[padding + spread * x] = from[x * column_stride];
    }
  }
};

template <typename T>
class ConvolveBand : ConvBand<T> {
  static constexpr int64_t lanes = Simd<T>::lanes;
  using V = Vec<T>;
  using Base = ConvBand<T>;
  using Base::band_;
  using Base::layout_;
  using Base::shape_;

 public:
  explicit ConvolveBand(const Convolution<T>& call)
      : Base(call.shape), call_(call), size_(shape_.kernel_size) {
    scratch_.add(&source_, Base::source_size());
    scratch_.add(&weights_, shape_.channels * size_ * size_ * call_.outputs);
    scratch_.allocate();
    taps_memory_.add(&taps_, size_);
    taps_memory_.allocate();
    Base::fill_taps(taps_);
  }

  void run(int64_t item) {
    band_ = shape_.band(item);
    Base::copy_inputs(call_.maps, call_.spread, call_.constant, source_);
    for (int64_t o = 0; o < call_.outputs; o += OUTPUTS) {
      switch (call_.outputs - o) {
        case 1:
          run_outputs<1>(o);
          break;
        case 2:
          run_outputs<2>(o);
          break;
        case 3:
          run_outputs<3>(o);
          break;
        default:
          run_outputs<OUTPUTS>(o);
          break;
      }
    }
  }

 private:
  const Convolution<T>& call_;
  const int64_t size_;
  Scratch<int64_t> taps_memory_;
  Scratch<T> scratch_;
  T *source_, *weights_;
  int64_t* taps_;

  template <int O>
  void run_outputs(int64_t o) {
    pack_weights<O>(o);
    layout_.for_each_chunk(band_.rows, [&](int64_t y, int64_t rows) {
      if (rows == ROWS) {
        run_rows<O, ROWS>(o, y);
      } else {
        for (int64_t i = 0; i < rows; ++i) run_rows<O, 1>(o, y + i * layout_.step);
      }
    });
  }

  // [input][window row][window column][output]
  template <int O>
  void pack_weights(int64_t first) {
    const T* group = call_.weight + band_.group * call_.weight_group;
    T* to = weights_;
    for (int64_t m = 0; m < shape_.channels; ++m) {
      for (int64_t position = 0; position < size_ * size_; ++position) {
        for (int64_t o = first; o < first + O; ++o) {
          *to++ = group[o * call_.weight_output + m * call_.weight_input +
                        position * call_.weight_position];
        }
      }
    }
  }

  template <int O, int R>
  void run_rows(int64_t o, int64_t y) {
    int64_t x = 0;
    for (; x + (PAIR - 1) * lanes < shape_.out_width; x += PAIR * lanes) {
      run_block<O, R, PAIR>(o, y, x);
    }
    if (x < shape_.out_width) run_block<O, R, 1>(o, y, x);
  }

  // O outputs of R rows and X vectors of columns.
  template <int O, int R, int X>
  INLINE void run_block(int64_t o, int64_t y, int64_t x) {
    V total[O][R][X] = {};
    const T* source = source_ + shape_.stride * y * layout_.key_row + x;
    for (int64_t m = 0; m < R + size_ - 1; ++m) {
      const int64_t low = m - size_ + 1 > 0 ? m - size_ + 1 : 0;
      const int64_t high = m + 1 < R ? m + 1 : R;
      // The accumulators stay in registers only where their numbers are constants.
      switch (low * 4 + high) {
        case 1:
          add_row<O, R, X, 0, 1>(total, source, m);
          break;
        case 2:
          if constexpr (R > 2) add_row<O, R, X, 0, 2>(total, source, m);
          break;
        case 3:
          if constexpr (R > 2) add_row<O, R, X, 0, 3>(total, source, m);
          break;
        case 6:
          if constexpr (R > 2) add_row<O, R, X, 1, 2>(total, source, m);
          break;
        case 7:
          if constexpr (R > 2) add_row<O, R, X, 1, 3>(total, source, m);
          break;
        case 11:
          if constexpr (R > 2) add_row<O, R, X, 2, 3>(total, source, m);
          break;
      }
      source += shape_.dilation * layout_.key_row;
    }
    store_outputs<O, R, X>(total, o, y, x);
  }

  // Row m of the sources, which is window row m - i of result row i.
  template <int O, int R, int X, int LOW, int HIGH>
  INLINE void add_row(V (&total)[O][R][X], const T* source, int64_t m) const {
    const T* weight = weights_ + m * size_ * O;
    for (int64_t input = 0; input < shape_.channels; ++input) {
      for (int64_t dx = 0; dx < size_; ++dx) {
        V x[X];
#pragma GCC unroll 8
        for (int j = 0; j < X; ++j) x[j] = held(load(source + taps_[dx] + j * lanes));
#pragma GCC unroll 8
        for (int i = LOW; i < HIGH; ++i) {
#pragma GCC unroll 8
          for (int o = 0; o < O; ++o) {
            const T w = weight[(dx - i * size_) * O + o];
#pragma GCC unroll 8
            for (int j = 0; j < X; ++j) total[o][i][j] += w * x[j];
          }
        }
      }
      source += layout_.key_channel;
      weight += size_ * size_ * O;
    }
  }

  template <int O, int R, int X>
  INLINE void store_outputs(const V (&total)[O][R][X], int64_t first, int64_t y, int64_t x) const {
    const int64_t width = shape_.out_width - x;
#pragma GCC unroll 8
    for (int o = 0; o < O; ++o) {
      const Maps<T>& to = call_.results[first + o];
      T* corner = to.image(band_.batch, 0) + band_.group * to.channel_stride +
                  (band_.first_row + y) * to.row_stride + x;
#pragma GCC unroll 8
      for (int i = 0; i < R; ++i) {
#pragma GCC unroll 8
        for (int j = 0; j < X; ++j) {
          T* place = corner + i * layout_.step * to.row_stride + j * lanes;
          const int64_t left = width - j * lanes;
          if (call_.add) {
            store(place, load(place, left) + total[o][i][j], left);
          } else {
            store(place, total[o][i][j], left);
          }
        }
      }
    }
  }
};

template <typename T>
class WeightGradBand : ConvBand<T> {
  static constexpr int64_t lanes = Simd<T>::lanes;
  using V = Vec<T>;
  using Base = ConvBand<T>;
  using Base::band_;
  using Base::layout_;
  using Base::shape_;

 public:
  explicit WeightGradBand(const ConvolutionWeightGrad<T>& call)
      : Base(call.shape),
        call_(call),
        size_(shape_.kernel_size),
        grad_map_(row_distance<T>(layout_.width)) {
    scratch_.add(&source_, Base::source_size());
    scratch_.add(&grad_, shape_.band_rows() * call_.outputs * grad_map_);
    scratch_.allocate();
    taps_memory_.add(&taps_, size_);
    taps_memory_.allocate();
    Base::fill_taps(taps_);
  }

  void run(int64_t item) {
    band_ = shape_.band(item);
    Base::copy_inputs(call_.maps, 1, call_.constant, source_);
    copy_grad();
    partial_ = call_.partial + item * call_.outputs * shape_.channels * size_ * size_;
    for (int64_t o = 0; o < call_.outputs; o += OUTPUTS) {
      switch (call_.outputs - o) {
        case 1:
          run_outputs<1>(o);
          break;
        case 2:
          run_outputs<2>(o);
          break;
        case 3:
          run_outputs<3>(o);
          break;
        default:
          run_outputs<OUTPUTS>(o);
          break;
      }
    }
  }

 private:
  const ConvolutionWeightGrad<T>& call_;
  const int64_t size_, grad_map_;
  Scratch<int64_t> taps_memory_;
  Scratch<T> scratch_;
  T *source_, *grad_, *partial_;
  int64_t* taps_;

  void copy_grad() {
    T* to = grad_;
    for (int64_t y = 0; y < band_.rows; ++y) {
      for (int64_t o = 0; o < call_.outputs; ++o, to += grad_map_) {
        const Maps<const T>& grad = call_.grads[o];
        const T* from = grad.image(band_.batch, 0) + band_.group * grad.channel_stride +
                        (band_.first_row + y) * grad.row_stride;
        if (grad.column_stride == 1) {
          std::memcpy(to, from, shape_.out_width * sizeof(T));
        } else {
          for (int64_t x = 0; x < shape_.out_width; ++x) to[x] = from[x * grad.column_stride];
        }
      }
    }
  }

  template <int O>
  void run_outputs(int64_t o) {
    int64_t m = 0;
    for (; m + PAIR <= shape_.channels; m += PAIR) run_inputs<O, PAIR>(o, m);
    for (; m < shape_.channels; ++m) run_inputs<O, 1>(o, m);
  }

  template <int O, int I>
  void run_inputs(int64_t o, int64_t m) {
    for (int64_t dy = 0; dy < size_; ++dy) {
      int64_t dx = 0;
      for (; dx + 3 <= size_; dx += 3) run_positions<O, I, 3>(o, m, dy, dx);
      for (; dx < size_; ++dx) run_positions<O, I, 1>(o, m, dy, dx);
    }
  }

  // O outputs, I inputs and N positions of a window row, summed over the band.
  template <int O, int I, int N>
  INLINE void run_positions(int64_t first_output, int64_t first_input, int64_t dy, int64_t dx) {
    V total[O][I][N] = {};
    int64_t taps[N];
    for (int n = 0; n < N; ++n) taps[n] = taps_[dx + n];
    for (int64_t y = 0; y < band_.rows; ++y) {
      const T* grad = grad_ + (y * call_.outputs + first_output) * grad_map_;
      const T* source = source_ + first_input * layout_.key_channel +
                        (shape_.stride * y + shape_.dilation * dy) * layout_.key_row;
      for (int64_t x = 0; x < layout_.width; x += lanes) {
        V g[O];
#pragma GCC unroll 8
        for (int o = 0; o < O; ++o) g[o] = load(grad + o * grad_map_ + x);
#pragma GCC unroll 8
        for (int i = 0; i < I; ++i) {
#pragma GCC unroll 8
          for (int n = 0; n < N; ++n) {
            const V s = load(source + i * layout_.key_channel + taps[n] + x);
#pragma GCC unroll 8
            for (int o = 0; o < O; ++o) total[o][i][n] += g[o] * s;
          }
        }
      }
    }
#pragma GCC unroll 8
    for (int o = 0; o < O; ++o) {
#pragma GCC unroll 8
      for (int i = 0; i < I; ++i) {
        const int64_t kernel = (first_output + o) * shape_.channels + first_input + i;
#pragma GCC unroll 8
        for (int n = 0; n < N; ++n) {
          partial_[(kernel * size_ + dy) * size_ + dx + n] = sum<T>(total[o][i][n]);
        }
      }
    }
  }
};

template <typename T>
void convolve(const Convolution<T>& call, int64_t begin, int64_t end) {
  ConvolveBand<T> band(call);
  for (int64_t item = begin; item < end; ++item) band.run(item);
}

template <typename T>
void convolution_weight_grad(const ConvolutionWeightGrad<T>& call, int64_t begin, int64_t end) {
  WeightGradBand<T> band(call);
  for (int64_t item = begin; item < end; ++item) band.run(item);
}

}  // namespace acmix::ISA
