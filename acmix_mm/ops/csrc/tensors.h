// Tensors of torch as the kernels see them.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <vector>

#include "window.h"

namespace acmix {

using at::Tensor;

template <typename T>
Maps<const T> read(const Tensor& maps) {
  return {maps.const_data_ptr<T>(), maps.stride(0), maps.stride(1),
          maps.stride(2),           maps.stride(3), maps.stride(4)};
}

template <typename T>
Maps<T> write(const Tensor& maps) {
  return {maps.mutable_data_ptr<T>(), maps.stride(0), maps.stride(1),
          maps.stride(2),             maps.stride(3), maps.stride(4)};
}

// Every map of (B, M, D, H, W) by itself.
template <typename T>
void append_each(std::vector<Maps<T>>& table, Maps<T> maps, int64_t count) {
  for (int64_t m = 0; m < count; ++m) {
    table.push_back(maps);
    table.back().data += m * maps.head_stride;
  }
}

// Half precision is computed in single precision.
inline at::ScalarType compute_type(const Tensor& tensor) {
  return tensor.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

}  // namespace acmix
