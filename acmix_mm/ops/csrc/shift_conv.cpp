// SPDX-License-Identifier: Apache-2.0
// torch.ops.acmix_mm.shift_conv_forward and _backward on the CPU.
#include <ATen/Dispatch.h>
#include <torch/library.h>

#include <algorithm>
#include <string>
#include <tuple>
#include <vector>

#include "checks.h"
#include "dispatch.h"
#include "tensors.h"

namespace acmix {
namespace {

// Maps are (B, M, G, H, W), in one tensor or several. Weights are (C, M, k, k), with C / G outputs
// for each of the G groups; if they have one map more, that is a constant map of ones. The result
// is (B, C, Ho, Wo).
struct Geometry {
  int64_t maps, outputs;  // of each group
  bool constant;
  BandedShape forward;   // from the maps to the result
  BandedShape backward;  // from the gradient of the result to the gradient of the maps

  int64_t positions() const { return forward.kernel_size * forward.kernel_size; }
  // Number of weights of one output, and of one group.
  int64_t output_size() const { return forward.channels * positions(); }
  int64_t group_size() const { return outputs * output_size(); }
  // (B, C, H, W) as (B, C / G, G, H, W): channel c is output c % (C / G) of group c / (C / G).
  Tensor by_output(const Tensor& x) const {
    return x.unflatten(1, {forward.groups, outputs}).transpose(1, 2);
  }
};

// Returns the geometry after checking the arguments.
Geometry checked_geometry(const char* op, at::TensorList parts, const Tensor& weight,
                          int64_t stride, int64_t dilation) {
  TORCH_CHECK(!parts.empty(), op, ": maps must be at least one tensor, got none");
  const Tensor& first = parts[0];
  int64_t maps = 0;
  for (size_t i = 0; i < parts.size(); ++i) {
    const std::string name = "maps[" + std::to_string(i) + "]";
    check_tensor(op, name, parts[i], 5);
    check_dtype(op, name, parts[i], first.scalar_type());
    check_shape(op, name, parts[i],
                {first.size(0), parts[i].size(1), first.size(2), first.size(3), first.size(4)});
    maps += parts[i].size(1);
  }
  check_tensor(op, "weight", weight, 4);
  check_dtype(op, "weight", weight, first.scalar_type());
  const Window window{weight.size(2), stride, dilation};
  check_window(op, window);
  const int64_t batch = first.size(0), groups = first.size(2);
  const int64_t height = first.size(3), width = first.size(4);
  const int64_t channels = weight.size(0), inputs = weight.size(1);
  TORCH_CHECK(weight.size(3) == weight.size(2) && channels > 0 && channels % groups == 0 &&
                  (inputs == maps || inputs == maps + 1),
              op, ": weight must be (C, ", maps, " or ", maps + 1,
              ", k, k) with C a positive multiple of ", groups, ", got ", weight.sizes());
  const int64_t out_height = ceil_div(height, stride), out_width = ceil_div(width, stride);
  const int64_t outputs = channels / groups;
  // A strided convolution is undone by a dense one over the gradient with zeros in between.
  const Window dense{window.kernel_size, 1, dilation};
  const Geometry geometry{maps,
                          outputs,
                          inputs > maps,
                          {window, batch, groups, inputs, height, width, out_height, out_width},
                          {dense, batch, groups, outputs, out_height, out_width, height, width}};
  check_scratch(op, geometry.forward);
  check_scratch(op, geometry.backward);
  return geometry;
}

// (pixels, channels) -> (channels, pixels), for each image.
template <typename T>
void transpose(const T* from, int64_t images, int64_t pixels, int64_t channels, T* to) {
  constexpr int64_t block = 64 / sizeof(T);  // what is written is a cache line
  const int64_t blocks = ceil_div(pixels, block);
  at::parallel_for(0, images * blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t image = item / blocks * pixels * channels, first = item % blocks * block;
      const int64_t last = std::min(first + block, pixels);
      for (int64_t c = 0; c < channels; ++c) {
        for (int64_t p = first; p < last; ++p) {
          to[image + c * pixels + p] = from[image + p * channels + c];
        }
      }
    }
  });
}

// Maps (B, ..., H, W) whose pixels are next to each other along a row: from other ones, the kernels
// would fetch a cache line for each pixel. Where channels are innermost, as in a Transformer, it is
// faster than `contiguous`. Done again in the backward pass, it saves keeping the maps twice.
Tensor with_near_pixels(const Tensor& maps) {
  if (maps.stride(-1) == 1) return maps;
  const Tensor x = maps.flatten(1, -3);
  if (!x.is_contiguous(at::MemoryFormat::ChannelsLast)) return maps.contiguous();
  const Tensor result = empty(maps.sizes(), maps.options());
  AT_DISPATCH_FLOATING_TYPES(maps.scalar_type(), "shift_conv", [&] {
    transpose(x.const_data_ptr<scalar_t>(), x.size(0), x.size(2) * x.size(3), x.size(1),
              result.mutable_data_ptr<scalar_t>());
  });
  return result;
}

std::vector<Tensor> readable(at::TensorList maps, at::ScalarType type) {
  std::vector<Tensor> result;
  for (const Tensor& part : maps) result.push_back(with_near_pixels(part.to(type)));
  return result;
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
void run_convolution(const char* op, const Convolution<T>& call) {
  const auto kernels = conv_kernels<T>();
  run_items(op, call.shape.items(),
            [&](int64_t begin, int64_t end) { kernels.convolve(call, begin, end); });
}

// Adds the gradients from all bands and images, always in the same order.
template <typename T>
void run_weight_grad(const char* op, const ConvolutionWeightGrad<T>& call, T* grad_weight) {
  const auto kernels = conv_kernels<T>();
  run_items(op, call.shape.items(),
            [&](int64_t begin, int64_t end) { kernels.weight_grad(call, begin, end); });
  const auto& s = call.shape;
  const int64_t size = call.outputs * s.channels * s.kernel_size * s.kernel_size;
  for (int64_t item = 0; item < s.items(); ++item) {
    const int64_t group = s.band(item).group;
    for (int64_t i = 0; i < size; ++i) {
      grad_weight[group * size + i] += call.partial[item * size + i];
    }
  }
}

Tensor forward(at::TensorList maps, const Tensor& weight, int64_t stride, int64_t dilation) {
  constexpr const char* op = "shift_conv_forward";
  const auto geometry = checked_geometry(op, maps, weight, stride, dilation);
  const auto& shape = geometry.forward;
  const auto type = compute_type(weight);
  const auto maps_ = readable(maps, type);
  const Tensor weight_ = weight.to(type).contiguous();
  const Tensor out =
      empty({shape.batch, weight.size(0), shape.out_height, shape.out_width}, weight_.options());
  AT_DISPATCH_FLOATING_TYPES(type, op, [&] {
    const auto from = read_each<scalar_t>(maps_);
    const auto to = write_each<scalar_t>({geometry.by_output(out)});
    run_convolution<scalar_t>(
        op, {shape, geometry.outputs, 1, geometry.constant, false, from.data(), to.data(),
             weight_.const_data_ptr<scalar_t>(), geometry.group_size(), geometry.output_size(),
             geometry.positions(), 1});
  });
  return out.to(weight.scalar_type());
}

std::tuple<std::vector<Tensor>, Tensor> backward(const Tensor& grad_out, at::TensorList maps,
                                                 const Tensor& weight, int64_t stride,
                                                 int64_t dilation) {
  constexpr const char* op = "shift_conv_backward";
  const auto geometry = checked_geometry(op, maps, weight, stride, dilation);
  const auto& shape = geometry.forward;
  check_tensor(op, "grad_out", grad_out, 4);
  check_dtype(op, "grad_out", grad_out, weight.scalar_type());
  check_shape(op, "grad_out", grad_out,
              {shape.batch, weight.size(0), shape.out_height, shape.out_width});
  const auto type = compute_type(weight);
  const auto maps_ = readable(maps, type);
  const Tensor weight_ = weight.to(type).contiguous();
  const Tensor grad_ = geometry.by_output(grad_out.to(type));
  std::vector<Tensor> grad_maps;
  for (const Tensor& part : maps) {
    grad_maps.push_back(empty(part.sizes(), weight_.options()));
  }
  const Tensor grad_weight = at::zeros(weight.sizes(), weight_.options());
  const Tensor partial = empty({shape.items(), geometry.group_size()}, weight_.options());
  AT_DISPATCH_FLOATING_TYPES(type, op, [&] {
    const auto inputs = read_each<scalar_t>(maps_);
    const auto grads = read_each<scalar_t>({grad_});
    const auto to = write_each<scalar_t>(grad_maps);
    // Inputs and outputs are exchanged, and the kernels are rotated by 180 degrees: they are read
    // from the last position to the first.
    run_convolution<scalar_t>(
        op, {geometry.backward, geometry.maps, stride, false, false, grads.data(), to.data(),
             weight_.const_data_ptr<scalar_t>() + geometry.positions() - 1, geometry.group_size(),
             geometry.positions(), geometry.output_size(), -1});
    run_weight_grad<scalar_t>(op,
                              {shape, geometry.outputs, geometry.constant, inputs.data(),
                               grads.data(), partial.mutable_data_ptr<scalar_t>()},
                              grad_weight.mutable_data_ptr<scalar_t>());
  });
  return {converted(grad_maps, weight.scalar_type()), grad_weight.to(weight.scalar_type())};
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
