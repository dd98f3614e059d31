// SPDX-License-Identifier: Apache-2.0
// torch.ops.acmix_mm.shift_conv_forward and _backward on the CPU.
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <tuple>
#include <vector>

#include "checks.h"
#include "dispatch.h"
#include "tensors.h"

namespace acmix {
namespace {

// Maps are (B, M, G, H, W), in one tensor or several; weights are (C, M, k, k) with C / G outputs
// for each group; with one map more in the weights, that is a constant map of ones. The result is
// (B, C, Ho, Wo).
struct Sizes {
  int64_t batch, maps, groups, height, width, outputs, inputs, kernel_size;
  int64_t result_height, result_width, stride, dilation;

  Sizes(at::TensorList parts, const Tensor& weight, int64_t stride_, int64_t dilation_)
      : batch(parts[0].size(0)),
        maps(0),
        groups(parts[0].size(2)),
        height(parts[0].size(3)),
        width(parts[0].size(4)),
        outputs(weight.size(0) / groups),
        inputs(weight.size(1)),
        kernel_size(weight.size(2)),
        result_height(ceil_div(height, stride_)),
        result_width(ceil_div(width, stride_)),
        stride(stride_),
        dilation(dilation_) {
    for (const Tensor& part : parts) maps += part.size(1);
  }

  ConvShape forward() const {
    return {{kernel_size, stride, dilation},
            batch,
            groups,
            inputs,
            outputs,
            height,
            width,
            result_height,
            result_width};
  }
  // From the result's gradient to the maps'.
  ConvShape backward() const {
    return {{kernel_size, 1, dilation},
            batch,
            groups,
            outputs,
            maps,
            result_height,
            result_width,
            height,
            width};
  }
  bool constant() const { return inputs > maps; }
  // (B, C, H, W) as (B, C / G, G, H, W): channel c is output c % (C / G) of group c / (C / G).
  Tensor by_output(const Tensor& x) const {
    return x.unflatten(1, {groups, outputs}).transpose(1, 2);
  }
};

void check(const char* op, at::TensorList maps, const Tensor& weight, int64_t stride,
           int64_t dilation) {
  TORCH_CHECK(!maps.empty(), op, ": maps must be at least one tensor, got none");
  int64_t count = 0;
  for (const Tensor& part : maps) {
    check_tensor(op, "maps", part, 5);
    check_dtype(op, "maps", part, maps[0].scalar_type());
    check_shape(op, "maps", part,
                {maps[0].size(0), part.size(1), maps[0].size(2), maps[0].size(3), maps[0].size(4)});
    count += part.size(1);
  }
  check_tensor(op, "weight", weight, 4);
  check_dtype(op, "weight", weight, maps[0].scalar_type());
  check_window(op, weight.size(2), stride, dilation);
  const int64_t groups = maps[0].size(2);
  TORCH_CHECK(weight.size(3) == weight.size(2) && weight.size(0) > 0 &&
                  weight.size(0) % groups == 0 &&
                  (weight.size(1) == count || weight.size(1) == count + 1),
              op, ": weight must be (C, ", count, " or ", count + 1,
              ", k, k) with C a positive multiple of ", groups, ", got ", weight.sizes());
}

std::vector<Tensor> converted(at::TensorList tensors, at::ScalarType type) {
  std::vector<Tensor> result;
  for (const Tensor& tensor : tensors) result.push_back(tensor.to(type));
  return result;
}

template <typename T>
std::vector<Maps<const T>> read_each(at::TensorList parts) {
  std::vector<Maps<const T>> table;
  for (const Tensor& part : parts) append_each(table, read<T>(part), part.size(1));
  return table;
}

template <typename T>
std::vector<Maps<T>> write_each(at::TensorList parts) {
  std::vector<Maps<T>> table;
  for (const Tensor& part : parts) append_each(table, write<T>(part), part.size(1));
  return table;
}

template <typename T>
void run_convolution(const Convolution<T>& call) {
  const auto kernels = conv_kernels<T>();
  at::parallel_for(0, call.shape.items(), 1,
                   [&](int64_t begin, int64_t end) { kernels.convolve(call, begin, end); });
}

// The shares of all bands and images, always added in the same order.
template <typename T>
void run_weight_grad(const ConvolutionWeightGrad<T>& call, T* grad_weight) {
  const auto kernels = conv_kernels<T>();
  at::parallel_for(0, call.shape.items(), 1,
                   [&](int64_t begin, int64_t end) { kernels.weight_grad(call, begin, end); });
  const auto& s = call.shape;
  const int64_t size = s.outputs * s.inputs * s.kernel_size * s.kernel_size;
  for (int64_t item = 0; item < s.items(); ++item) {
    const int64_t group = item / s.bands() % s.groups;
    for (int64_t i = 0; i < size; ++i) {
      grad_weight[group * size + i] += call.partial[item * size + i];
    }
  }
}

Tensor forward(at::TensorList maps, const Tensor& weight, int64_t stride, int64_t dilation) {
  check("shift_conv_forward", maps, weight, stride, dilation);
  const auto type = compute_type(maps[0]);
  const auto maps_ = converted(maps, type);
  const Tensor weight_ = weight.to(type).contiguous();
  const Sizes sizes(maps, weight, stride, dilation);
  const Tensor out = empty({sizes.batch, weight.size(0), sizes.result_height, sizes.result_width},
                           weight_.options());
  const int64_t positions = sizes.kernel_size * sizes.kernel_size;
  auto run = [&](auto zero) {
    using T = decltype(zero);
    const auto from = read_each<T>(maps_);
    const auto to = write_each<T>({sizes.by_output(out)});
    run_convolution<T>({sizes.forward(), 1, sizes.constant(), from.data(), to.data(),
                        weight_.const_data_ptr<T>(), sizes.outputs * sizes.inputs * positions,
                        sizes.inputs * positions, positions, 1});
  };
  type == at::kDouble ? run(0.0) : run(0.0f);
  return out.to(maps[0].scalar_type());
}

std::tuple<std::vector<Tensor>, Tensor> backward(const Tensor& grad_out, at::TensorList maps,
                                                 const Tensor& weight, int64_t stride,
                                                 int64_t dilation) {
  const char* op = "shift_conv_backward";
  check(op, maps, weight, stride, dilation);
  check_tensor(op, "grad_out", grad_out, 4);
  check_dtype(op, "grad_out", grad_out, maps[0].scalar_type());
  check_shape(op, "grad_out", grad_out,
              {maps[0].size(0), weight.size(0), ceil_div(maps[0].size(3), stride),
               ceil_div(maps[0].size(4), stride)});
  const auto type = compute_type(maps[0]);
  const auto maps_ = converted(maps, type);
  const Tensor weight_ = weight.to(type).contiguous();
  const Sizes sizes(maps, weight, stride, dilation);
  const Tensor grad_ = sizes.by_output(grad_out.to(type));
  const int64_t positions = sizes.kernel_size * sizes.kernel_size;
  std::vector<Tensor> grad_maps;
  for (const Tensor& part : maps) {
    grad_maps.push_back(empty(part.sizes(), weight_.options()));
  }
  const Tensor grad_weight = at::zeros(weight.sizes(), weight_.options());
  const Tensor partial =
      empty({sizes.forward().items(), sizes.outputs * sizes.inputs * positions}, weight_.options());
  auto run = [&](auto zero) {
    using T = decltype(zero);
    const auto inputs = read_each<T>(maps_);
    const auto grads = read_each<T>({grad_});
    const auto to = write_each<T>(grad_maps);
    // Inputs and outputs change places, and the kernels are turned around.
    run_convolution<T>({sizes.backward(), stride, false, grads.data(), to.data(),
                        weight_.const_data_ptr<T>() + positions - 1,
                        sizes.outputs * sizes.inputs * positions, positions,
                        sizes.inputs * positions, -1});
    run_weight_grad<T>({sizes.forward(), sizes.constant(), inputs.data(), grads.data(),
                        partial.mutable_data_ptr<T>()},
                       grad_weight.mutable_data_ptr<T>());
  };
  type == at::kDouble ? run(0.0) : run(0.0f);
  return {converted(grad_maps, maps[0].scalar_type()), grad_weight.to(weight.scalar_type())};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(acmix_mm, library) {
  library.def(
      "shift_conv_forward(Tensor[] maps, Tensor weight, int stride, int dilation) -> Tensor");
  library.def(
      "shift_conv_backward(Tensor grad_out, Tensor[] maps, Tensor weight, int stride, int "
      "dilation) "
      "-> (Tensor[] grad_maps, Tensor grad_weight)");
}

TORCH_LIBRARY_IMPL(acmix_mm, CPU, library) {
  library.impl("shift_conv_forward", forward);
  library.impl("shift_conv_backward", backward);
}

}  // namespace acmix
