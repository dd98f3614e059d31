// SPDX-License-Identifier: Apache-2.0
// Checks of the arguments of the operators. Python callers are checked in Python with friendlier
// messages; these checks keep every other caller of the dispatcher from crashing the process.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cstdint>
#include <string>

#include "kernels/window.h"

namespace acmix {

// The largest size of a dimension, of a window and of its stride. Products of two fit in 64 bits.
constexpr int64_t LARGEST_SIZE = int64_t{1} << 24;

// A dense floating-point tensor on the CPU with `dim` dimensions, of which only the first, the
// batch, may have size 0.
inline void check_tensor(const char* op, const std::string& name, const at::Tensor& tensor,
                         int64_t dim) {
  TORCH_CHECK(tensor.defined(), op, ": ", name, " must be a tensor, got an undefined one");
  TORCH_CHECK(tensor.device().is_cpu() && tensor.layout() == at::kStrided, op, ": ", name,
              " must be a dense tensor on the CPU, got ", tensor.layout(), " on ", tensor.device());
  const auto type = tensor.scalar_type();
  TORCH_CHECK(
      type == at::kFloat || type == at::kDouble || type == at::kHalf || type == at::kBFloat16, op,
      ": ", name, " must be float16, bfloat16, float32 or float64, got ", type);
  TORCH_CHECK(tensor.dim() == dim, op, ": ", name, " must have ", dim, " dimensions, got shape ",
              tensor.sizes());
  for (int64_t axis = 0; axis < dim; ++axis) {
    const int64_t size = tensor.size(axis), least = axis == 0 ? 0 : 1;
    TORCH_CHECK(size >= least && size <= LARGEST_SIZE, op, ": the size of ", name, " in dimension ",
                axis, " must be from ", least, " to ", LARGEST_SIZE, ", got shape ",
                tensor.sizes());
  }
}

inline void check_dtype(const char* op, const std::string& name, const at::Tensor& tensor,
                        at::ScalarType expected) {
  TORCH_CHECK(tensor.scalar_type() == expected, op, ": ", name, " must have dtype ", expected,
              ", got ", tensor.scalar_type());
}

inline void check_shape(const char* op, const std::string& name, const at::Tensor& tensor,
                        at::IntArrayRef expected) {
  TORCH_CHECK(tensor.sizes() == expected, op, ": ", name, " must have shape ", expected, ", got ",
              tensor.sizes());
}

inline void check_window(const char* op, const Window& window) {
  const auto& [kernel_size, stride, dilation] = window;
  TORCH_CHECK(kernel_size > 0 && kernel_size % 2 == 1 && kernel_size <= LARGEST_SIZE, op,
              ": kernel_size must be an odd number from 1 to ", LARGEST_SIZE, ", got ",
              kernel_size);
  TORCH_CHECK(stride > 0 && stride <= LARGEST_SIZE, op, ": stride must be from 1 to ", LARGEST_SIZE,
              ", got ", stride);
  TORCH_CHECK(dilation > 0 && dilation <= LARGEST_SIZE / kernel_size, op,
              ": dilation must be from 1 to ", LARGEST_SIZE / kernel_size, " for kernel_size ",
              kernel_size, ", got ", dilation);
}

// Refuses geometry that needs over 4 GiB of scratch memory in each thread, hundreds of times that
// of any network: memory would run out, or the index arithmetic of the kernels overflow. The
// estimate is a floating-point number, which does not overflow.
inline void check_scratch(const char* op, const BandedShape& shape) {
  constexpr double most = 0x1p30, widest_vector = 64;
  const double stride = shape.stride, reach = 2.0 * shape.padding();
  const double rows = stride * BandedShape::MOST_ROWS + reach;
  const double columns = stride * (shape.out_width + widest_vector) + reach;
  const double positions = static_cast<double>(shape.kernel_size) * shape.kernel_size;
  const double elements = columns * std::max(rows * shape.channels, positions);
  TORCH_CHECK(elements <= most, op, ": kernel_size ", shape.kernel_size, ", stride ", shape.stride,
              " and dilation ", shape.dilation, " with ", shape.channels,
              " channels and a width of ", shape.width, " need scratch memory for ", elements,
              " elements; at most ", most, " are supported");
}

}  // namespace acmix
