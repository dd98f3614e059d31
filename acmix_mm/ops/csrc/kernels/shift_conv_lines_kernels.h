// SPDX-License-Identifier: Apache-2.0
// Grouped convolution with few inputs and outputs per group, vectorized over the groups.
//
// It is for maps whose channels are next to each other, as in a Transformer. A band of rows of one
// line of groups is copied to scratch memory with its border of zeros. Then every loaded vector of
// weights serves several pixels of a row, and every vector of pixels 4 outputs.
#pragma once

#include "shift_conv.h"
#include "simd.h"

namespace acmix::ISA {

constexpr int LINE_OUTPUTS = 4;
// Pixels of a row, and inputs of a weight's gradient, that are held in registers at a time.
constexpr int LINE_PIXELS = VECTOR_REGISTERS >= 32 ? 6 : 3;
constexpr int LINE_INPUTS = VECTOR_REGISTERS >= 32 ? 2 : 1;

// The groups of a band are those of a line, of which the kernels compute one vector at a time.
template <typename T>
class LinesBand {
 protected:
  static constexpr int64_t lanes = Simd<T>::lanes;
  using V = Vec<T>;

  const BandedShape& shape_;
  const int64_t positions_, plane_, map_, row_;
  Band band_{};      // the band being computed
  int64_t first_{};  // the first of the groups being computed

  explicit LinesBand(const BandedShape& shape)
      : shape_(shape),
        positions_(shape.kernel_size * shape.kernel_size),
        plane_(ceil_div(widest() + 2 * shape.padding(), shape.stride)),
        map_(shape.stride * plane_ * lanes),
        row_(shape.channels * map_) {}

  // Number of elements of scratch memory for the padded pixels that a band reads.
  int64_t source_size() const { return shape_.covered_rows(shape_.band_rows()) * row_; }

  // Sets taps[i] to where position i of the first window lies in scratch memory.
  void fill_taps(int64_t* taps) const {
    for (int64_t i = 0; i < positions_; ++i) {
      const int64_t dy = i / shape_.kernel_size, dx = i % shape_.kernel_size;
      taps[i] = shape_.dilation * dy * row_ + column(shape_.dilation * dx);
    }
  }

  template <typename F>
  INLINE void for_each_vector(int64_t item, F run) {
    band_ = shape_.band(item);
    for (int64_t i = 0; i < LINE<T>; i += lanes) {
      first_ = band_.group * LINE<T> + i;
      run(i);
    }
  }

  // The border's columns, and those between spread inputs, are 0 from the start and stay so.
  void copy_inputs(const Maps<const T>* maps, int64_t spread, bool constant, T* to) const {
    const int64_t given = shape_.channels - constant;
    for (int64_t r = 0; r < shape_.covered_rows(band_.rows); ++r, to += row_) {
      const int64_t position = shape_.stride * band_.first_row + r - shape_.padding();
      const int64_t row = position / spread;
      if (position < 0 || position % spread != 0 || row >= shape_.height) {
        std::memset(to, 0, row_ * sizeof(T));
        continue;
      }
      for (int64_t x = 0; x < shape_.width; ++x) {
        copy_pixel(maps, given, row, x, to + column(shape_.padding() + spread * x), map_);
      }
      if (constant) {
        for (int64_t x = 0; x < shape_.width; ++x) {
          store(to + given * map_ + column(shape_.padding() + x), V{} + 1);
        }
      }
    }
  }

  // Where the groups being computed begin in a row of a map.
  template <typename M>
  INLINE auto pixels(const M& map, int64_t row) const {
    return map.image(band_.batch, 0) + first_ * map.channel_stride + row * map.row_stride;
  }

  // Copies a vector of each map. All maps of a pixel at once: they are likely next to each other.
  INLINE void copy_pixel(const Maps<const T>* maps, int64_t count, int64_t row, int64_t x, T* to,
                         int64_t to_next) const {
    for (int64_t m = 0; m < count; ++m, to += to_next) {
      const int64_t distance = maps[m].channel_stride;
      const T* from = pixels(maps[m], row) + x * maps[m].column_stride;
      if (distance == 1) {
        store(to, load(from));
      } else {
        for (int64_t lane = 0; lane < lanes; ++lane) to[lane] = from[lane * distance];
      }
    }
  }

 private:
  // Where column c of the padded map lies in a row of scratch memory, in which the pixels that
  // neighboring windows read are next to each other.
  INLINE int64_t column(int64_t c) const {
    return (c % shape_.stride * plane_ + c / shape_.stride) * lanes;
  }

  // Inputs that are spread have fewer columns than the results.
  int64_t widest() const {
    return shape_.width > shape_.out_width ? shape_.width : shape_.out_width;
  }
};

template <typename T>
class ConvolveLines : LinesBand<T> {
  using Base = LinesBand<T>;
  using Base::band_;
  using Base::lanes;
  using Base::positions_;
  using Base::row_;
  using Base::shape_;
  using V = Vec<T>;

 public:
  explicit ConvolveLines(const Convolution<T>& call) : Base(call.shape), call_(call) {
    scratch_.add(&source_, Base::source_size());
    scratch_.allocate();
    taps_memory_.add(&taps_, positions_);
    taps_memory_.allocate();
    Base::fill_taps(taps_);
  }

  void run(int64_t item) {
    Base::for_each_vector(item, [&](int64_t i) {
      Base::copy_inputs(call_.maps, call_.spread, call_.constant, source_);
      weights_ = call_.weight + band_.group * call_.weight_group + i;
      for (int64_t o = 0; o < call_.outputs; o += LINE_OUTPUTS) {
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
            run_outputs<LINE_OUTPUTS>(o);
            break;
        }
      }
    });
  }

 private:
  const Convolution<T>& call_;
  Scratch<int64_t> taps_memory_;
  Scratch<T> scratch_;
  T* source_;
  const T* weights_;
  int64_t* taps_;

  template <int O>
  void run_outputs(int64_t o) {
    for (int64_t y = 0; y < band_.rows; ++y) {
      int64_t x = 0;
      for (; x + LINE_PIXELS <= shape_.out_width; x += LINE_PIXELS) {
        run_block<O, LINE_PIXELS>(o, y, x);
      }
      for (; x + 2 <= shape_.out_width; x += 2) run_block<O, 2>(o, y, x);
      if (x < shape_.out_width) run_block<O, 1>(o, y, x);
    }
  }

  // O outputs of X pixels of a row.
  template <int O, int X>
  INLINE void run_block(int64_t o, int64_t y, int64_t x) {
    V total[O][X] = {};
    const T* source = source_ + shape_.stride * y * row_ + x * lanes;
    const T* input = weights_ + o * call_.weight_output;
    for (int64_t m = 0; m < shape_.channels; ++m) {
      const T* weight = input;
      for (int64_t position = 0; position < positions_; ++position) {
        V pixel[X];
#pragma GCC unroll 8
        for (int j = 0; j < X; ++j) pixel[j] = held(load(source + taps_[position] + j * lanes));
#pragma GCC unroll 8
        for (int i = 0; i < O; ++i) {
          const V w = held(load(weight + i * call_.weight_output));
#pragma GCC unroll 8
          for (int j = 0; j < X; ++j) total[i][j] += w * pixel[j];
        }
        weight += call_.weight_position;
      }
      source += Base::map_;
      input += call_.weight_input;
    }
    store_outputs<O, X>(total, o, y, x);
  }

  template <int O, int X>
  INLINE void store_outputs(const V (&total)[O][X], int64_t first, int64_t y, int64_t x) const {
#pragma GCC unroll 8
    for (int i = 0; i < O; ++i) {
      const Maps<T>& to = call_.results[first + i];
      T* place = Base::pixels(to, band_.first_row + y) + x * to.column_stride;
#pragma GCC unroll 8
      for (int j = 0; j < X; ++j, place += to.column_stride) {
        if (to.channel_stride == 1) {
          store(place, total[i][j]);
        } else {
          for (int64_t lane = 0; lane < lanes; ++lane) {
            place[lane * to.channel_stride] = total[i][j][lane];
          }
        }
      }
    }
  }
};

template <typename T>
class WeightGradLines : LinesBand<T> {
  using Base = LinesBand<T>;
  using Base::band_;
  using Base::lanes;
  using Base::map_;
  using Base::positions_;
  using Base::row_;
  using Base::shape_;
  using V = Vec<T>;

 public:
  explicit WeightGradLines(const ConvolutionWeightGrad<T>& call)
      : Base(call.shape), call_(call), grad_map_(shape_.out_width * lanes) {
    scratch_.add(&source_, Base::source_size());
    scratch_.add(&grad_, shape_.band_rows() * call_.outputs * grad_map_);
    scratch_.allocate();
    taps_memory_.add(&taps_, positions_);
    taps_memory_.allocate();
    Base::fill_taps(taps_);
  }

  void run(int64_t item) {
    Base::for_each_vector(item, [&](int64_t i) {
      Base::copy_inputs(call_.maps, 1, call_.constant, source_);
      copy_grad();
      partial_ = call_.partial + item * call_.outputs * shape_.channels * positions_ * LINE<T> + i;
      for (int64_t o = 0; o < call_.outputs; o += LINE_OUTPUTS) {
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
            run_outputs<LINE_OUTPUTS>(o);
            break;
        }
      }
    });
  }

 private:
  const ConvolutionWeightGrad<T>& call_;
  const int64_t grad_map_;
  Scratch<int64_t> taps_memory_;
  Scratch<T> scratch_;
  T *source_, *grad_, *partial_;
  int64_t* taps_;

  void copy_grad() {
    T* to = grad_;
    for (int64_t y = 0; y < band_.rows; ++y, to += call_.outputs * grad_map_) {
      for (int64_t x = 0; x < shape_.out_width; ++x) {
        Base::copy_pixel(call_.grads, call_.outputs, band_.first_row + y, x, to + x * lanes,
                         grad_map_);
      }
    }
  }

  template <int O>
  void run_outputs(int64_t o) {
    int64_t m = 0;
    for (; m + LINE_INPUTS <= shape_.channels; m += LINE_INPUTS) run_inputs<O, LINE_INPUTS>(o, m);
    for (; m < shape_.channels; ++m) run_inputs<O, 1>(o, m);
  }

  template <int O, int I>
  void run_inputs(int64_t o, int64_t m) {
    int64_t position = 0;
    for (; position + 3 <= positions_; position += 3) run_positions<O, I, 3>(o, m, position);
    for (; position < positions_; ++position) run_positions<O, I, 1>(o, m, position);
  }

  // O outputs, I inputs and N positions of the windows, summed over the pixels of the band.
  template <int O, int I, int N>
  INLINE void run_positions(int64_t first_output, int64_t first_input, int64_t position) {
    V total[O][I][N] = {};
    int64_t taps[N];
    for (int n = 0; n < N; ++n) taps[n] = taps_[position + n];
    for (int64_t y = 0; y < band_.rows; ++y) {
      const T* grad = grad_ + (y * call_.outputs + first_output) * grad_map_;
      const T* source = source_ + first_input * map_ + shape_.stride * y * row_;
      for (int64_t x = 0; x < grad_map_; x += lanes) {
        V g[O];
#pragma GCC unroll 8
        for (int o = 0; o < O; ++o) g[o] = load(grad + o * grad_map_ + x);
#pragma GCC unroll 8
        for (int i = 0; i < I; ++i) {
#pragma GCC unroll 8
          for (int n = 0; n < N; ++n) {
            const V s = load(source + i * map_ + taps[n] + x);
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
          store(partial_ + (kernel * positions_ + position + n) * LINE<T>, total[o][i][n]);
        }
      }
    }
  }
};

template <typename T>
void convolve_lines(const Convolution<T>& call, int64_t begin, int64_t end) {
  ConvolveLines<T> band(call);
  for (int64_t item = begin; item < end; ++item) band.run(item);
}

template <typename T>
void weight_grad_of_lines(const ConvolutionWeightGrad<T>& call, int64_t begin, int64_t end) {
  WeightGradLines<T> band(call);
  for (int64_t item = begin; item < end; ++item) band.run(item);
}

}  // namespace acmix::ISA
