// SPDX-License-Identifier: Apache-2.0
// The part of the kernels that attention and convolution have in common.
#pragma once

#include "layout.h"

namespace acmix::ISA {

// Base class of the kernels that compute one band at a time in scratch memory.
template <typename T>
class BandKernel {
 protected:
  const BandedShape& shape_;
  const Layout<T> layout_;
  Band band_{};  // the band being computed

  explicit BandKernel(const BandedShape& shape)
      : shape_(shape), layout_(shape, shape.channels, shape.out_width) {}

  // Number of elements of scratch memory for the padded pixels that a band reads.
  int64_t source_size() const { return shape_.covered_rows(shape_.band_rows()) * layout_.key_row; }

  // Sets taps[dx] to where column dx of the first window of a row lies in scratch memory.
  void fill_taps(int64_t* taps) const {
    for (int64_t dx = 0; dx < shape_.kernel_size; ++dx) {
      taps[dx] = layout_.column(dx * shape_.dilation);
    }
  }
};

}  // namespace acmix::ISA
