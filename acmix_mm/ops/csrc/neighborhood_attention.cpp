// SPDX-License-Identifier: Apache-2.0
// torch.ops.acmix_mm.neighborhood_attention_forward and _backward on the CPU.
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <tuple>
#include <utility>

#include "checks.h"
#include "dispatch.h"
#include "tensors.h"

namespace acmix {
namespace {

AttentionShape shape_of(const Tensor& q, const Tensor& k, int64_t kernel_size, int64_t stride,
                        int64_t dilation) {
  return {{kernel_size, stride, dilation},
          k.size(0),
          k.size(1),
          k.size(2),
          k.size(3),
          k.size(4),
          q.size(3),
          q.size(4)};
}

void check(const char* op, const Tensor& q, const Tensor& k, const Tensor& v, int64_t kernel_size,
           int64_t stride, int64_t dilation) {
  check_window(op, kernel_size, stride, dilation);
  check_tensor(op, "k", k, 5);
  check_tensor(op, "q", q, 5);
  check_tensor(op, "v", v, 5);
  check_dtype(op, "q", q, k.scalar_type());
  check_dtype(op, "v", v, k.scalar_type());
  check_shape(op, "v", v, k.sizes());
  check_shape(
      op, "q", q,
      {k.size(0), k.size(1), k.size(2), ceil_div(k.size(3), stride), ceil_div(k.size(4), stride)});
}

template <typename T>
void run_forward(const AttentionForward<T>& call) {
  const auto kernels = attention_kernels<T>();
  at::parallel_for(0, call.shape.items(), 1,
                   [&](int64_t begin, int64_t end) { kernels.forward(call, begin, end); });
}

template <typename T>
void run_backward(const AttentionBackward<T>& call) {
  const auto kernels = attention_kernels<T>();
  at::parallel_for(0, call.shape.items(), 1,
                   [&](int64_t begin, int64_t end) { kernels.backward(call, begin, end); });
  at::parallel_for(0, call.shape.batch * call.shape.heads, 1,
                   [&](int64_t begin, int64_t end) { kernels.fold_halo(call, begin, end); });
}

std::tuple<Tensor, Tensor> forward(const Tensor& q, const Tensor& k, const Tensor& v,
                                   int64_t kernel_size, int64_t stride, int64_t dilation,
                                   double scale) {
  check("neighborhood_attention_forward", q, k, v, kernel_size, stride, dilation);
  const auto type = compute_type(q);
  const Tensor q_ = q.to(type), k_ = k.to(type), v_ = v.to(type);
  const auto shape = shape_of(q, k, kernel_size, stride, dilation);
  Tensor out = empty(q.sizes(), q_.options());
  Tensor lse = empty({q.size(0), q.size(1), q.size(3), q.size(4)}, q_.options());
  auto run = [&](auto zero) {
    using T = decltype(zero);
    run_forward<T>({shape, static_cast<T>(scale), read<T>(q_), read<T>(k_), read<T>(v_),
                    write<T>(out), lse.mutable_data_ptr<T>()});
  };
  type == at::kDouble ? run(0.0) : run(0.0f);
  return {out.to(q.scalar_type()), lse};
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad_out, const Tensor& q,
                                            const Tensor& k, const Tensor& v, const Tensor& out,
                                            const Tensor& lse, int64_t kernel_size, int64_t stride,
                                            int64_t dilation, double scale) {
  const char* op = "neighborhood_attention_backward";
  check(op, q, k, v, kernel_size, stride, dilation);
  const auto type = compute_type(q);
  for (const auto& [name, tensor] : {std::pair{"grad_out", grad_out}, std::pair{"out", out}}) {
    check_tensor(op, name, tensor, 5);
    check_dtype(op, name, tensor, q.scalar_type());
    check_shape(op, name, tensor, q.sizes());
  }
  check_tensor(op, "lse", lse, 4);
  check_dtype(op, "lse", lse, type);
  check_shape(op, "lse", lse, {q.size(0), q.size(1), q.size(3), q.size(4)});
  const Tensor q_ = q.to(type), k_ = k.to(type), v_ = v.to(type);
  const Tensor out_ = out.to(type), grad_out_ = grad_out.to(type), lse_ = lse.contiguous();
  const auto shape = shape_of(q, k, kernel_size, stride, dilation);
  Tensor grad_q = empty(q.sizes(), q_.options());
  Tensor grad_k = empty(k.sizes(), q_.options());
  Tensor grad_v = empty(k.sizes(), q_.options());
  Tensor halo =
      empty({shape.items(), 2, shape.halo_rows(), shape.channels, shape.width}, q_.options());
  auto run = [&](auto zero) {
    using T = decltype(zero);
    run_backward<T>({shape, static_cast<T>(scale), read<T>(q_), read<T>(k_), read<T>(v_),
                     read<T>(out_), read<T>(grad_out_), lse_.const_data_ptr<T>(), write<T>(grad_q),
                     write<T>(grad_k), write<T>(grad_v), halo.mutable_data_ptr<T>()});
  };
  type == at::kDouble ? run(0.0) : run(0.0f);
  const auto wanted = q.scalar_type();
  return {grad_q.to(wanted), grad_k.to(wanted), grad_v.to(wanted)};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(acmix_mm, library) {
  library.def(
      "neighborhood_attention_forward(Tensor q, Tensor k, Tensor v, int kernel_size, int stride, "
      "int dilation, float scale) -> (Tensor out, Tensor lse)");
  library.def(
      "neighborhood_attention_backward(Tensor grad_out, Tensor q, Tensor k, Tensor v, Tensor out, "
      "Tensor lse, int kernel_size, int stride, int dilation, float scale) "
      "-> (Tensor grad_q, Tensor grad_k, Tensor grad_v)");
}

TORCH_LIBRARY_IMPL(acmix_mm, CPU, library) {
  library.impl("neighborhood_attention_forward", forward);
  library.impl("neighborhood_attention_backward", backward);
}

}  // namespace acmix
