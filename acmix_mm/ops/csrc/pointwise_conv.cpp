// SPDX-License-Identifier: Apache-2.0
// torch.ops.acmix_mm.pointwise_conv_forward and _backward on the CPU.
#include <ATen/Dispatch.h>
#include <ATen/ops/cat.h>
#include <torch/library.h>

#include <string>
#include <tuple>
#include <vector>

#include "checks.h"
#include "dispatch.h"
#include "tensors.h"

namespace acmix {
namespace {

// Lists the channels of tensors (B, C, H, W), one tensor after the other.
template <typename T, typename Pointer>
std::vector<Channel<T>> channels_of(const std::vector<Tensor>& maps, Pointer pointer) {
  std::vector<Channel<T>> channels;
  for (const Tensor& part : maps) {
    for (int64_t c = 0; c < part.size(1); ++c) {
      channels.push_back({pointer(part) + c * part.stride(1), part.stride(0)});
    }
  }
  return channels;
}

// Multiplies the sources by a weight of shape (outputs, inputs), at every pixel.
template <typename T>
void run(const char* op, const std::vector<Tensor>& sources, const Tensor& weight,
         const Tensor* bias, const std::vector<Tensor>& results) {
  const auto from =
      channels_of<const T>(sources, [](const Tensor& t) { return t.const_data_ptr<T>(); });
  const auto to = channels_of<T>(results, [](const Tensor& t) { return t.mutable_data_ptr<T>(); });
  const Tensor& first = sources.front();
  const Pointwise<T> call{first.size(0),
                          first.size(2) * first.size(3),
                          weight.size(1),
                          weight.size(0),
                          pointwise_block(weight.size(1)),
                          from.data(),
                          to.data(),
                          weight.const_data_ptr<T>(),
                          bias == nullptr ? nullptr : bias->const_data_ptr<T>()};
  const auto kernels = pointwise_kernels<T>();
  run_items(op, call.items(), [&](int64_t begin, int64_t end) { kernels.run(call, begin, end); });
}

void check(const char* op, const Tensor& x, const Tensor& weight) {
  check_tensor(op, "x", x, 4);
  check_tensor(op, "weight", weight, 2);
  const auto type = x.scalar_type();
  TORCH_CHECK(type == at::kFloat || type == at::kDouble, op, ": x must be float32 or float64, got ",
              type);
  check_dtype(op, "weight", weight, type);
  TORCH_CHECK(weight.size(0) > 0 && weight.size(1) == x.size(1), op,
              ": weight must be a non-empty (C_out, ", x.size(1), "), got ", weight.sizes());
}

// Each chunk is a tensor of its own: one large block would cost more than its chunks, because
// allocators return large blocks to the system every time.
std::vector<Tensor> forward(const Tensor& x, const Tensor& weight, const Tensor& bias,
                            int64_t chunks) {
  constexpr const char* op = "pointwise_conv_forward";
  check(op, x, weight);
  TORCH_CHECK(chunks > 0 && weight.size(0) % chunks == 0, op,
              ": chunks must be a positive divisor of the ", weight.size(0), " outputs, got ",
              chunks);
  check_tensor(op, "bias", bias, 1);
  check_dtype(op, "bias", bias, x.scalar_type());
  check_shape(op, "bias", bias, {weight.size(0)});
  std::vector<Tensor> results;
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    results.push_back(
        empty({x.size(0), weight.size(0) / chunks, x.size(2), x.size(3)}, x.options()));
  }
  const Tensor bias_ = bias.contiguous();
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), op, [&] {
    run<scalar_t>(op, {x.contiguous()}, weight.contiguous(), &bias_, results);
  });
  return results;
}

std::tuple<Tensor, Tensor, Tensor> backward(at::TensorList grads, const Tensor& x,
                                            const Tensor& weight) {
  constexpr const char* op = "pointwise_conv_backward";
  check(op, x, weight);
  const int64_t chunks = static_cast<int64_t>(grads.size());
  TORCH_CHECK(chunks > 0 && weight.size(0) % chunks == 0, op,
              ": the number of grads must be a positive divisor of the ", weight.size(0),
              " outputs, got ", chunks);
  for (int64_t i = 0; i < chunks; ++i) {
    const std::string name = "grads[" + std::to_string(i) + "]";
    check_tensor(op, name, grads[i], 4);
    check_dtype(op, name, grads[i], x.scalar_type());
    check_shape(op, name, grads[i], {x.size(0), weight.size(0) / chunks, x.size(2), x.size(3)});
  }
  std::vector<Tensor> parts, grad_weights, grad_biases;
  const Tensor pixels = x.contiguous().flatten(2).transpose(1, 2);  // (B, H * W, C)
  for (const Tensor& grad : grads) {
    parts.push_back(grad.contiguous());
    grad_weights.push_back(parts.back().flatten(2).matmul(pixels).sum(0));
    grad_biases.push_back(parts.back().sum({0, 2, 3}));
  }
  const Tensor grad_x = empty(x.sizes(), x.options());
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), op, [&] {
    run<scalar_t>(op, parts, weight.t().contiguous(), nullptr, {grad_x});
  });
  return {grad_x, at::cat(grad_weights), at::cat(grad_biases)};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(acmix_mm, library) {
  library.def(
      "pointwise_conv_forward(Tensor x, Tensor weight, Tensor bias, int chunks) -> Tensor[]");
  library.def(
      "pointwise_conv_backward(Tensor[] grads, Tensor x, Tensor weight) "
      "-> (Tensor grad_x, Tensor grad_weight, Tensor grad_bias)");
}

TORCH_LIBRARY_IMPL(acmix_mm, CPU, library) {
  library.impl("pointwise_conv_forward", forward);
  library.impl("pointwise_conv_backward", backward);
}

}  // namespace acmix
