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
  int64_t groups;
  int64_t maps, outputs;  // of each group
  bool constant;
  int64_t line;  // number of groups that the kernels compute together
  // Their groups are lines of groups.
  BandedShape forward;   // from the maps to the result
  BandedShape backward;  // from the gradient of the result to the gradient of the maps

  int64_t positions() const { return forward.kernel_size * forward.kernel_size; }
  // Number of weights of one output, and of one group.
  int64_t output_size() const { return forward.channels * positions(); }
  int64_t group_size() const { return outputs * output_size(); }
  bool by_line() const { return line > 1; }
  // (B, C, H, W) as (B, C / G, G, H, W): channel c is output c % (C / G) of group c / (C / G).
  Tensor by_output(const Tensor& x) const {
    return x.unflatten(1, {groups, outputs}).transpose(1, 2);
  }
};

// Returns how many groups the kernels compute together: those of a cache line, if channels are next
// to each other and fill whole lines, or else 1. `_by_line` in ops/backends/cpu.py has the same
// rule, because it tells which strides results have.
int64_t groups_together(at::TensorList parts) {
  const int64_t line = 64 / c10::elementSize(compute_type(parts[0]));
  const bool near = std::all_of(parts.begin(), parts.end(),
                                [](const Tensor& part) { return part.stride(2) == 1; });
  return near && parts[0].size(2) % line == 0 ? line : 1;
}

// Returns the shape in lines of groups, with as many rows in a band as all groups of a line allow.
BandedShape in_lines(const char* op, BandedShape shape, int64_t line) {
  BandedShape whole = shape;
  whole.channels *= line;
  check_scratch(op, whole);
  shape.groups /= line;
  shape.chosen_rows = whole.band_rows();
  return shape;
}

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
  const int64_t line = groups_together(parts);
  const BandedShape forward{window, batch, groups, inputs, height, width, out_height, out_width};
  const BandedShape backward{dense, batch, groups, outputs, out_height, out_width, height, width};
  return {groups,
          maps,
          outputs,
          inputs > maps,
          line,
          in_lines(op, forward, line),
          in_lines(op, backward, line)};
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

// The maps as the kernels read them.
std::vector<Tensor> readable(const Geometry& geometry, at::TensorList maps, at::ScalarType type) {
  std::vector<Tensor> result;
  for (const Tensor& part : maps) {
    const Tensor x = part.to(type);
    result.push_back(geometry.by_line() ? x : with_near_pixels(x));
  }
  return result;
}

// Memory for maps (B, ..., H, W), with their channels innermost if the kernels write lines of them.
Tensor empty_maps(const Geometry& geometry, at::IntArrayRef sizes,
                  const at::TensorOptions& options) {
  if (!geometry.by_line()) return empty(sizes, options);
  std::vector<int64_t> memory(sizes.begin(), sizes.end());
  std::rotate(memory.begin() + 1, memory.end() - 2, memory.end());
  return empty(memory, options).movedim({1, 2}, {-2, -1});
}

// Weights of (lines, rows, columns) as (lines, columns, rows).
Tensor transposed(const Tensor& weight, int64_t lines, int64_t rows, int64_t columns) {
  const Tensor result = empty(weight.sizes(), weight.options());
  AT_DISPATCH_FLOATING_TYPES(weight.scalar_type(), "shift_conv", [&] {
    transpose(weight.const_data_ptr<scalar_t>(), lines, rows, columns,
              result.mutable_data_ptr<scalar_t>());
  });
  return result;
}

// From (C, M, k, k) to the order of the kernels, in which the weights of the groups of a line are
// next to each other.
Tensor packed(const Geometry& geometry, const Tensor& weight) {
  if (!geometry.by_line()) return weight;
  return transposed(weight, geometry.forward.groups, geometry.line, geometry.group_size());
}

// The inverse.
Tensor unpacked(const Geometry& geometry, const Tensor& weight) {
  if (!geometry.by_line()) return weight;
  return transposed(weight, geometry.forward.groups, geometry.group_size(), geometry.line);
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
ConvKernels<T> kernels_for(const Geometry& geometry) {
  return geometry.by_line() ? line_conv_kernels<T>() : conv_kernels<T>();
}

template <typename T>
void run_convolution(const char* op, const ConvKernels<T>& kernels, const Convolution<T>& call) {
  run_items(op, call.shape.items(),
            [&](int64_t begin, int64_t end) { kernels.convolve(call, begin, end); });
}

// Adds the gradients from all bands and images, always in the same order.
template <typename T>
void run_weight_grad(const char* op, const ConvKernels<T>& kernels,
                     const ConvolutionWeightGrad<T>& call, int64_t size, T* grad_weight) {
  run_items(op, call.shape.items(),
            [&](int64_t begin, int64_t end) { kernels.weight_grad(call, begin, end); });
  for (int64_t item = 0; item < call.shape.items(); ++item) {
    const int64_t group = call.shape.band(item).group;
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
  const auto maps_ = readable(geometry, maps, type);
  const Tensor weight_ = packed(geometry, weight.to(type).contiguous());
  const Tensor out =
      empty_maps(geometry, {shape.batch, weight.size(0), shape.out_height, shape.out_width},
                 weight_.options());
  const int64_t line = geometry.line;
  AT_DISPATCH_FLOATING_TYPES(type, op, [&] {
    const auto from = read_each<scalar_t>(maps_);
    const auto to = write_each<scalar_t>({geometry.by_output(out)});
    run_convolution<scalar_t>(
        op, kernels_for<scalar_t>(geometry),
        {shape, geometry.outputs, 1, geometry.constant, false, from.data(), to.data(),
         weight_.const_data_ptr<scalar_t>(), line * geometry.group_size(),
         line * geometry.output_size(), line * geometry.positions(), line});
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
  const auto maps_ = readable(geometry, maps, type);
  const Tensor weight_ = packed(geometry, weight.to(type).contiguous());
  const Tensor grad_ = geometry.by_output(grad_out.to(type));
  std::vector<Tensor> grad_maps;
  for (const Tensor& part : maps) {
    grad_maps.push_back(empty_maps(geometry, part.sizes(), weight_.options()));
  }
  const int64_t line = geometry.line, size = line * geometry.group_size();
  const Tensor grad_weight = at::zeros(weight.sizes(), weight_.options());
  const Tensor partial = empty({shape.items(), size}, weight_.options());
  AT_DISPATCH_FLOATING_TYPES(type, op, [&] {
    const auto inputs = read_each<scalar_t>(maps_);
    const auto grads = read_each<scalar_t>({grad_});
    const auto to = write_each<scalar_t>(grad_maps);
    // Inputs and outputs are exchanged, and the kernels are rotated by 180 degrees: they are read
    // from the last position to the first.
    const auto kernels = kernels_for<scalar_t>(geometry);
    run_convolution<scalar_t>(
        op, kernels,
        {geometry.backward, geometry.maps, stride, false, false, grads.data(), to.data(),
         weight_.const_data_ptr<scalar_t>() + line * (geometry.positions() - 1), size,
         line * geometry.positions(), line * geometry.output_size(), -line});
    run_weight_grad<scalar_t>(op, kernels,
                              {shape, geometry.outputs, geometry.constant, inputs.data(),
                               grads.data(), partial.mutable_data_ptr<scalar_t>()},
                              size, grad_weight.mutable_data_ptr<scalar_t>());
  });
  return {converted(grad_maps, weight.scalar_type()),
          unpacked(geometry, grad_weight).to(weight.scalar_type())};
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
