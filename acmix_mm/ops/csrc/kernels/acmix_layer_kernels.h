// SPDX-License-Identifier: Apache-2.0
// A whole ACmix layer, one band of rows after the other.
//
// The projections to queries, keys and values are computed for the rows that a band reads, in
// scratch memory. The kernels of the convolution and of the attention run on these rows while they
// are in the cache. The next band of the same image reuses the rows that both read.
#pragma once

#include "acmix_layer.h"
#include "neighborhood_attention_kernels.h"
#include "pointwise_conv_kernels.h"
#include "shift_conv_kernels.h"

namespace acmix::ISA {

// Rows of q, k and v of one image.
template <typename T>
class ProjectedRows {
 public:
  ProjectedRows(const LayerInput<T>& input, const BandedShape& shape)
      : input_(input),
        projection_(input.projection),
        shape_(shape),
        rows_held_(round_up(rows_read(shape, input.reach), shape.stride)),
        channel_(row_distance<T>(rows_held_ * shape.width)),
        block_(projection_) {
    rows_memory_.add(&rows_, projection_.results_count * channel_);
    rows_memory_.allocate_uninitialized();
    results_memory_.add(&results_, projection_.results_count);
    results_memory_.allocate_uninitialized();
    maps_memory_.add(&maps_, 3 * shape.groups);
    maps_memory_.allocate_uninitialized();
    projection_.results = results_;
    const int64_t map = shape.channels * channel_;
    for (int64_t m = 0; m < 3 * shape.groups; ++m) {
      maps_[m] = {rows_ + m * map, 0, map, channel_, shape.width, 1, rows_held_};
    }
  }

  // Number of rows from the first query of a band to the last.
  static int64_t rows_of_queries(const BandedShape& shape) {
    return shape.stride * (shape.band_rows() - 1) + 1;
  }

  // The largest number of rows that a band reads.
  static int64_t rows_read(const BandedShape& shape, int64_t reach) {
    const int64_t rows = rows_of_queries(shape) + 2 * reach;
    return rows < shape.height ? rows : shape.height;
  }

  // Computes the rows that band `index` of an image reads.
  void load(int64_t image, int64_t index) {
    const int64_t begin = shape_.stride * shape_.band_rows() * index;
    const int64_t end = begin + rows_of_queries(shape_) + input_.reach;
    const int64_t first = begin > input_.reach ? begin - input_.reach : 0;
    const int64_t last = end < shape_.height ? end : shape_.height;
    const bool overlaps = image == image_ && first < last_;
    image_ = image;
    for (int64_t row = overlaps ? last_ : first; row < last;) {
      const int64_t slots = rows_held_ - row % rows_held_;  // up to the end of the memory
      const int64_t next = last - row < slots ? last : row + slots;
      project(row, next);
      row = next;
    }
    last_ = last;
  }

  // Sets q, k and v of a call of the attention. Its queries are `stride` pixels apart, which
  // divides the number of rows held: a row of queries has the same place whichever rows are
  // counted.
  template <typename Attention>
  void give(Attention& attention) const {
    attention.q = maps_[0];
    attention.q.row_stride *= shape_.stride;
    attention.q.column_stride *= shape_.stride;
    attention.q.rows_held /= shape_.stride;
    attention.k = maps_[shape_.groups];
    attention.v = maps_[2 * shape_.groups];
  }

  // The maps of the heads of q, then of k and of v.
  const Maps<const T>* maps() const { return maps_; }

 private:
  const LayerInput<T>& input_;
  Pointwise<T> projection_;
  const BandedShape& shape_;
  const int64_t rows_held_, channel_;  // `channel_` is the distance of channels
  PointwiseBlock<T> block_;
  Scratch<T> rows_memory_;
  Scratch<Channel<T>> results_memory_;
  Scratch<Maps<const T>> maps_memory_;
  T* rows_;
  Channel<T>* results_;
  Maps<const T>* maps_;
  int64_t image_ = -1, last_ = 0;  // the rows before `last_` of this image were computed

  // Rows [begin, end), which are next to each other in memory.
  void project(int64_t begin, int64_t end) {
    const int64_t width = shape_.width, place = begin % rows_held_ * width;
    for (int64_t c = 0; c < projection_.results_count; ++c) {
      results_[c] = {rows_ + c * channel_ + place - begin * width, 0};
    }
    const int64_t last = end * width, step = projection_.block;
    for (int64_t pixel = begin * width; pixel < last; pixel += step) {
      block_.run(image_, pixel, pixel + step < last ? pixel + step : last);
    }
  }
};

template <typename T>
void layer_forward(const LayerForward<T>& call, int64_t begin, int64_t end) {
  AttentionForward<T> attention = call.attention;
  Convolution<T> convolution = call.convolution;
  const int64_t bands = attention.shape.bands(), heads = attention.shape.groups;
  ProjectedRows<T> rows(call.input, attention.shape);
  rows.give(attention);
  convolution.maps = rows.maps();
  ConvolveBand<T> convolve(convolution);
  ForwardBand<T> attend(attention);
  for (int64_t item = begin; item < end; ++item) {
    const int64_t image = item / bands, index = item % bands;
    rows.load(image, index);
    for (int64_t n = 0, g = 0; n < heads; ++n) {
      // Group g of the convolution writes the channels [heads * g, heads * (g + 1)) of the result,
      // to which the attention adds while they are in the cache.
      for (; heads * g < (n + 1) * attention.shape.channels; ++g) {
        convolve.run((image * convolution.shape.groups + g) * bands + index);
      }
      attend.run((image * attention.shape.groups + n) * bands + index);
    }
  }
}

// Moves the gradients of queries, which the band wrote to the beginnings of their rows, to where
// the queries were read. The other pixels are no queries.
template <typename T>
void spread_queries(const AttentionBackward<T>& attention, const Band& band) {
  const BandedShape& s = attention.shape;
  const Maps<T>& queries = attention.grad_q;
  for (int64_t n = 0; n < s.groups * s.channels; ++n) {
    T* row = queries.image(band.batch, n / s.channels) + n % s.channels * queries.channel_stride +
             s.own_begin(band) * s.width;
    for (int64_t y = s.own_begin(band); y < s.own_end(band); ++y, row += s.width) {
      if (y % s.stride != 0) {
        std::memset(row, 0, s.width * sizeof(T));
        continue;
      }
      for (int64_t x = s.out_width - 1; x >= 0; --x) {  // none is overwritten before it is moved
        const int64_t place = s.stride * x, next = place + s.stride;
        const T value = row[x];
        for (int64_t i = place; i < next && i < s.width; ++i) row[i] = 0;
        row[place] = value;
      }
    }
  }
}

// Minus the sum over the heads of what the band wrote to the gradients of its keys.
template <typename T>
void sum_position(const AttentionBackward<T>& attention, const Band& band) {
  const BandedShape& s = attention.shape;
  const Maps<T>& keys = attention.grad_k;
  const int64_t first = s.own_begin(band), pixels = (s.own_end(band) - first) * s.width;
  for (int64_t c = 0; c < s.channels; ++c) {
    T* to = attention.grad_position + ((band.batch * s.channels + c) * s.height + first) * s.width;
    std::memset(to, 0, pixels * sizeof(T));
    for (int64_t n = 0; n < s.groups; ++n) {
      const T* from = keys.image(band.batch, n) + c * keys.channel_stride + first * keys.row_stride;
      for (int64_t x = 0; x < pixels; ++x) to[x] -= from[x];
    }
  }
}

template <typename T>
void layer_backward(const LayerBackward<T>& call, int64_t begin, int64_t end) {
  AttentionBackward<T> attention = call.attention;
  ConvolutionWeightGrad<T> weight_grad = call.weight_grad;
  const int64_t bands = attention.shape.bands(), groups = weight_grad.shape.groups;
  ProjectedRows<T> rows(call.input, attention.shape);
  rows.give(attention);
  weight_grad.maps = rows.maps();
  ConvolveBand<T> convolve(call.convolution);
  WeightGradBand<T> differentiate(weight_grad);
  BackwardBand<T> attend(attention);
  for (int64_t item = begin; item < end; ++item) {
    const int64_t image = item / bands, index = item % bands;
    rows.load(image, index);
    for (int64_t n = 0; n < attention.shape.groups; ++n) {
      attend.run((image * attention.shape.groups + n) * bands + index);
    }
    const Band band = attention.shape.band(image * attention.shape.groups * bands + index);
    if (attention.shape.stride > 1) spread_queries(attention, band);
    sum_position(attention, band);
    for (int64_t g = 0; g < groups; ++g) {
      convolve.run((image * groups + g) * bands + index);
      differentiate.run((image * groups + g) * bands + index);
    }
  }
}

}  // namespace acmix::ISA
