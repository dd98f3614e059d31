// SPDX-License-Identifier: Apache-2.0
// torch.ops.acmix_mm.neighborhood_attention_forward and _backward on the CPU.
#include <ATen/Dispatch.h>
#include <torch/library.h>

#include <tuple>
#include <utility>

#include "checks.h"
#include "dispatch.h"
#include "tensors.h"

namespace acmix {
namespace {

// Returns the geometry after checking the arguments.
BandedShape checked_shape(const char* op, const Tensor& q, const Tensor& k, const Tensor& v,
                          const Window& window) {
  check_window(op, window);
  for (const auto& [name, tensor] : {std::pair{"k", k}, std::pair{"q", q}, std::pair{"v", v}}) {
    check_tensor(op, name, tensor, 5);
    check_dtype(op, name, tensor, k.scalar_type());
  }
  check_shape(op, "v", v, k.sizes());
  const BandedShape shape{window,
                          k.size(0),
                          k.size(1),
                          k.size(2),
                          k.size(3),
                          k.size(4),
                          ceil_div(k.size(3), window.stride),
                          ceil_div(k.size(4), window.stride)};
  check_shape(op, "q", q,
              {shape.batch, shape.groups, shape.channels, shape.out_height, shape.out_width});
  check_scratch(op, shape);
  return shape;
}

std::tuple<Tensor, Tensor> forward(const Tensor& q, const Tensor& k, const Tensor& v,
                                   int64_t kernel_size, int64_t stride, int64_t dilation,
                                   double scale) {
  constexpr const char* op = "neighborhood_attention_forward";
  const auto shape = checked_shape(op, q, k, v, {kernel_size, stride, dilation});
  const auto type = compute_type(q);
  const Tensor q_ = q.to(type), k_ = k.to(type), v_ = v.to(type);
  Tensor out = empty(q.sizes(), q_.options());
  Tensor lse = empty({q.size(0), q.size(1), q.size(3), q.size(4)}, q_.options());
  AT_DISPATCH_FLOATING_TYPES(type, op, [&] {
    const AttentionForward<scalar_t> call{shape,
                                          static_cast<scalar_t>(scale),
                                          read<scalar_t>(q_),
                                          read<scalar_t>(k_),
                                          read<scalar_t>(v_),
                                          nullptr,
                                          write<scalar_t>(out),
                                          1,
                                          false,
                                          lse.mutable_data_ptr<scalar_t>()};
    const auto kernels = attention_kernels<scalar_t>();
    run_items(op, shape.items(),
              [&](int64_t begin, int64_t end) { kernels.forward(call, begin, end); });
  });
  return {out.to(q.scalar_type()), lse};
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad_out, const Tensor& q,
                                            const Tensor& k, const Tensor& v, const Tensor& lse,
                                            int64_t kernel_size, int64_t stride, int64_t dilation,
                                            double scale) {
  constexpr const char* op = "neighborhood_attention_backward";
  const auto shape = checked_shape(op, q, k, v, {kernel_size, stride, dilation});
  const auto type = compute_type(q);
  check_tensor(op, "grad_out", grad_out, 5);
  check_dtype(op, "grad_out", grad_out, q.scalar_type());
  check_shape(op, "grad_out", grad_out, q.sizes());
  check_tensor(op, "lse", lse, 4);
  check_dtype(op, "lse", lse, type);
  check_shape(op, "lse", lse, {q.size(0), q.size(1), q.size(3), q.size(4)});
  const Tensor q_ = q.to(type), k_ = k.to(type), v_ = v.to(type);
  const Tensor grad_out_ = grad_out.to(type), lse_ = lse.contiguous();
  Tensor grad_q = empty(q.sizes(), q_.options());
  Tensor grad_k = empty(k.sizes(), q_.options());
  Tensor grad_v = empty(k.sizes(), q_.options());
  Tensor halo =
      empty({shape.items(), 2, halo_rows(shape), shape.channels, shape.width}, q_.options());
  AT_DISPATCH_FLOATING_TYPES(type, op, [&] {
    const AttentionBackward<scalar_t> call{shape,
                                           static_cast<scalar_t>(scale),
                                           read<scalar_t>(q_),
                                           read<scalar_t>(k_),
                                           read<scalar_t>(v_),
                                           nullptr,
                                           read<scalar_t>(grad_out_),
                                           1,
                                           lse_.const_data_ptr<scalar_t>(),
                                           write<scalar_t>(grad_q),
                                           write<scalar_t>(grad_k),
                                           write<scalar_t>(grad_v),
                                           nullptr,
                                           halo.mutable_data_ptr<scalar_t>(),
                                           nullptr};
    const auto kernels = attention_kernels<scalar_t>();
    run_items(op, shape.items(),
              [&](int64_t begin, int64_t end) { kernels.backward(call, begin, end); });
    run_items(op, shape.batch * shape.channels,
              [&](int64_t begin, int64_t end) { kernels.fold_halo(call, begin, end); });
  });
  const auto result_type = q.scalar_type();
  return {grad_q.to(result_type), grad_k.to(result_type), grad_v.to(result_type)};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(acmix_mm, library) {
  library.def(
      "neighborhood_attention_forward(Tensor q, Tensor k, Tensor v, int kernel_size, int stride, "
      "int dilation, float scale) -> (Tensor out, Tensor lse)");
  library.def(
      "neighborhood_attention_backward(Tensor grad_out, Tensor q, Tensor k, Tensor v, Tensor lse, "
      "int kernel_size, int stride, int dilation, float scale) "
      "-> (Tensor grad_q, Tensor grad_k, Tensor grad_v)");
}

TORCH_LIBRARY_IMPL(acmix_mm, CPU, library) {
  library.impl("neighborhood_attention_forward", forward);
  library.impl("neighborhood_attention_backward", backward);
}

}  // namespace acmix
