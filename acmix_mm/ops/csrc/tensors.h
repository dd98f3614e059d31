// SPDX-License-Identifier: Apache-2.0
// Tensors of torch as the kernels see them.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <cstdint>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "kernels/window.h"

namespace acmix {

using at::Tensor;

template <typename T>
Maps<const T> read(const Tensor& maps) {
  return {maps.const_data_ptr<T>(), maps.stride(0), maps.stride(1),
          maps.stride(2),           maps.stride(3), maps.stride(4)};
}

template <typename T>
Maps<T> write(const Tensor& maps) {
  return {maps.mutable_data_ptr<T>(),
          maps.stride(0),
          maps.stride(1),
          maps.stride(2),
          maps.stride(3),
          maps.stride(4)};
}

// Every map of (B, M, D, H, W) by itself.
template <typename T>
void append_each(std::vector<Maps<T>>& table, Maps<T> maps, int64_t count) {
  for (int64_t m = 0; m < count; ++m) {
    table.push_back(maps);
    table.back().data += m * maps.head_stride;
  }
}

// Memory for results. Blocks over 32 MiB come from the system every time, which clears each page
// when it is first written and takes as long as the arithmetic: huge pages take a fraction of that.
// (Smaller blocks are kept for the next one who asks, so that for them it would only cost.)
inline Tensor empty(at::IntArrayRef sizes, const at::TensorOptions& options) {
  Tensor tensor = at::empty(sizes, options);
#if defined(__linux__)
  constexpr uintptr_t page = 1 << 21, least = 16 * page;
  const uintptr_t data = reinterpret_cast<uintptr_t>(tensor.mutable_data_ptr());
  const uintptr_t begin = (data + page - 1) / page * page;
  const uintptr_t end = (data + tensor.nbytes()) / page * page;
  // Advice alone: where it is not taken, nothing changes.
  if (tensor.nbytes() > least) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
  return tensor;
}

// Half precision is computed in single precision.
inline at::ScalarType compute_type(const Tensor& tensor) {
  return tensor.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

}  // namespace acmix
