// SPDX-License-Identifier: Apache-2.0
// Conversions of torch tensors to what the kernels take, and memory for results.
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

// Appends the `count` maps of a tensor (B, M, D, H, W), one entry for each index of M.
template <typename T>
void append_each(std::vector<Maps<T>>& table, Maps<T> maps, int64_t count) {
  for (int64_t m = 0; m < count; ++m) {
    table.push_back(maps);
    table.back().data += m * maps.head_stride;
  }
}

// Returns an uninitialized tensor for results. The allocator requests blocks of more than 32 MiB
// from the system each time, which clears every page when it is first written. That takes as long
// as the computation; with huge pages, a fraction of that. Smaller blocks are reused, so that huge
// pages would not pay off.
inline Tensor empty(at::IntArrayRef sizes, const at::TensorOptions& options) {
  Tensor tensor = at::empty(sizes, options);
#if defined(__linux__)
  constexpr uintptr_t page = 1 << 21, least = 16 * page;
  const uintptr_t data = reinterpret_cast<uintptr_t>(tensor.mutable_data_ptr());
  const uintptr_t begin = (data + page - 1) / page * page;
  const uintptr_t end = (data + tensor.nbytes()) / page * page;
  // This is only a hint: results are the same if the system ignores it.
  if (tensor.nbytes() > least) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
  return tensor;
}

// The dtype of the computation: half precision is computed in single precision.
inline at::ScalarType compute_type(const Tensor& tensor) {
  return tensor.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

}  // namespace acmix
