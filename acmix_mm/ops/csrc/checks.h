// SPDX-License-Identifier: Apache-2.0
// Checks of the arguments of the operators. Python callers are checked in Python with friendlier
// messages; these checks keep every other caller of the dispatcher from crashing the process.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <cstdint>

namespace acmix {

// No side of a map or kernel may be larger, so that products of a few of them fit in 64 bits.
constexpr int64_t LARGEST_SIDE = int64_t{1} << 24;

// A defined dense floating-point tensor on the CPU with `dim` axes, all but the first not empty.
inline void check_tensor(const char* op, const char* name, const at::Tensor& tensor, int64_t dim) {
  TORCH_CHECK(tensor.defined(), op, ": ", name, " must be a tensor, got none");
  TORCH_CHECK(tensor.device().is_cpu() && tensor.layout() == at::kStrided, op, ": ", name,
              " must be a dense tensor on the CPU, got ", tensor.layout(), " on ", tensor.device());
  const auto type = tensor.scalar_type();
  TORCH_CHECK(
      type == at::kFloat || type == at::kDouble || type == at::kHalf || type == at::kBFloat16, op,
      ": ", name, " must be float16, bfloat16, float32 or float64, got ", type);
  TORCH_CHECK(tensor.dim() == dim, op, ": ", name, " must have ", dim, " dimensions, got shape ",
              tensor.sizes());
  for (int64_t axis = 0; axis < dim; ++axis) {
    const int64_t size = tensor.size(axis);
    TORCH_CHECK((axis == 0 || size > 0) && size <= LARGEST_SIDE, op, ": size ", size, " of ", name,
                " in dimension ", axis, " must be from ", axis == 0 ? 0 : 1, " to ", LARGEST_SIDE);
  }
}

inline void check_dtype(const char* op, const char* name, const at::Tensor& tensor,
                        at::ScalarType expected) {
  TORCH_CHECK(tensor.scalar_type() == expected, op, ": ", name, " must be of type ", expected,
              ", got ", tensor.scalar_type());
}

inline void check_shape(const char* op, const char* name, const at::Tensor& tensor,
                        at::IntArrayRef expected) {
  TORCH_CHECK(tensor.sizes() == expected, op, ": ", name, " must have shape ", expected, ", got ",
              tensor.sizes());
}

// Also bounds how far a window reaches, and with it the scratch memory of the kernels.
inline void check_window(const char* op, int64_t kernel_size, int64_t stride, int64_t dilation) {
  TORCH_CHECK(kernel_size > 0 && kernel_size % 2 == 1, op,
              ": kernel_size must be a positive odd number, got ", kernel_size);
  TORCH_CHECK(stride > 0 && stride <= LARGEST_SIDE, op, ": stride must be from 1 to ", LARGEST_SIDE,
              ", got ", stride);
  TORCH_CHECK(dilation > 0 && dilation <= LARGEST_SIDE && kernel_size <= LARGEST_SIDE &&
                  dilation * kernel_size <= LARGEST_SIDE,
              op, ": dilation must be positive and dilation * kernel_size at most ", LARGEST_SIDE,
              ", got dilation ", dilation, " and kernel_size ", kernel_size);
}

}  // namespace acmix
