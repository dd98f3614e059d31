// SPDX-License-Identifier: Apache-2.0
// torch.ops.acmix_mm.acmix_layer_forward and _backward on the CPU.
#include <ATen/Dispatch.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <tuple>
#include <vector>

#include "checks.h"
#include "dispatch.h"
#include "tensors.h"

namespace acmix {
namespace {

// The sizes of a layer, and what is computed of each band of rows.
struct Geometry {
  BandedShape attention, convolution;
  BandedShape conv_gradient;  // from the gradient of the result to those of q, k and v
  int64_t in_channels;

  int64_t heads() const { return attention.groups; }
  int64_t head_channels() const { return attention.channels; }
  int64_t channels() const { return heads() * head_channels(); }
  int64_t pixels() const { return attention.height * attention.width; }
  int64_t items() const { return attention.batch * attention.bands(); }
  std::array<int64_t, 4> result_sizes(int64_t channels) const {
    return {attention.batch, channels, attention.out_height, attention.out_width};
  }
  int64_t positions() const { return convolution.kernel_size * convolution.kernel_size; }
  // Number of weights of the convolution of one output, and of one group.
  int64_t output_size() const { return convolution.channels * positions(); }
  int64_t group_size() const { return heads() * output_size(); }
  // (B, C, H, W) as heads of the attention.
  Tensor by_head(const Tensor& x) const { return x.unflatten(1, {heads(), head_channels()}); }
  // The same by outputs of the convolution: channel c is output c % N of group c / N.
  Tensor by_output(const Tensor& x) const {
    return x.unflatten(1, {head_channels(), heads()}).transpose(1, 2);
  }
};

// Number of rows in a band, nearly the same in all of them: a multiple of the 3 rows that kernels
// process together, few enough for q, k and v to stay in the third-level cache, and for many
// threads, and enough to read few rows twice. It depends on the height of the result alone.
int64_t rows_of_bands(int64_t height) {
  constexpr int64_t most = 9;
  return ceil_div(ceil_div(height, ceil_div(height, most)), 3) * 3;
}

// The arguments that both operators take, after `contiguous`.
struct Arguments {
  Tensor x, qkv_weight, qkv_bias, position, conv_weight, alpha;
};

// Returns the geometry after checking the arguments.
Geometry checked_geometry(const char* op, const Arguments& a, int64_t kernel_size, int64_t stride,
                          int64_t dilation) {
  check_tensor(op, "x", a.x, 4);
  const auto type = a.x.scalar_type();
  TORCH_CHECK(type == at::kFloat || type == at::kDouble, op, ": x must be float32 or float64, got ",
              type);
  const auto check = [&](const char* name, const Tensor& tensor, int64_t dim) {
    check_tensor(op, name, tensor, dim);
    check_dtype(op, name, tensor, type);
  };
  check("qkv_weight", a.qkv_weight, 2);
  check("qkv_bias", a.qkv_bias, 1);
  check("position", a.position, 3);
  check("conv_weight", a.conv_weight, 4);
  check("alpha", a.alpha, 1);
  const int64_t batch = a.x.size(0), height = a.x.size(2), width = a.x.size(3);
  const int64_t channels = a.conv_weight.size(0), maps = a.conv_weight.size(1);
  const int64_t head_channels = a.position.size(0), heads = maps / 3;
  TORCH_CHECK(
      channels > 0 && head_channels > 0 && maps % 3 == 0 && channels == heads * head_channels, op,
      ": conv_weight must be (N * ", head_channels,
      ", 3 * N, k, k) for N heads and a position of shape ", a.position.sizes(), ", got ",
      a.conv_weight.sizes());
  check_shape(op, "qkv_weight", a.qkv_weight, {3 * channels, a.x.size(1)});
  check_shape(op, "qkv_bias", a.qkv_bias, {3 * channels});
  check_shape(op, "position", a.position, {head_channels, height, width});
  check_shape(op, "alpha", a.alpha, {1});
  const Window window{kernel_size, stride, dilation};
  const Window conv_window{a.conv_weight.size(2), stride, dilation};
  check_window(op, window);
  check_window(op, conv_window);
  TORCH_CHECK(a.conv_weight.size(3) == conv_window.kernel_size, op,
              ": conv_weight must have square kernels, got ", a.conv_weight.sizes());
  const int64_t out_height = ceil_div(height, stride), out_width = ceil_div(width, stride);
  const int64_t rows = rows_of_bands(out_height);
  const auto banded = [&](const Window& w, int64_t groups, int64_t inputs) {
    const BandedShape shape{w, batch, groups, inputs, height, width, out_height, out_width, rows};
    check_scratch(op, shape);
    return shape;
  };
  // The rows of q, k and v count as channels of one window.
  banded(window.padding() > conv_window.padding() ? window : conv_window, 1, 3 * channels);
  // A strided convolution is undone by a dense one over the gradient with zeros in between. Its
  // bands are the rows of the input that belong to the bands of the result.
  const Window dense{conv_window.kernel_size, 1, dilation};
  return {banded(window, heads, head_channels),
          banded(conv_window, head_channels, maps),
          {dense, batch, head_channels, heads, out_height, out_width, height, width,
           std::min(stride * rows, height)},
          a.x.size(1)};
}

template <typename T>
std::vector<Maps<const T>> read_each(const Tensor& maps) {
  std::vector<Maps<const T>> table;
  append_each(table, read<T>(maps), maps.size(1));
  return table;
}

template <typename T>
void write_each(std::vector<Maps<T>>& table, const Tensor& maps) {
  append_each(table, write<T>(maps), maps.size(1));
}

// Lists the channels of x.
template <typename T>
std::vector<Channel<const T>> channels_of(const Tensor& x) {
  std::vector<Channel<const T>> channels;
  for (int64_t c = 0; c < x.size(1); ++c) {
    channels.push_back({x.const_data_ptr<T>() + c * x.stride(1), x.stride(0)});
  }
  return channels;
}

template <typename T>
LayerInput<T> input_of(const Geometry& g, const Arguments& a,
                       const std::vector<Channel<const T>>& channels) {
  return {{g.attention.batch, g.pixels(), g.in_channels, 3 * g.channels(),
           pointwise_block(g.in_channels), channels.data(), nullptr,
           a.qkv_weight.const_data_ptr<T>(), a.qkv_bias.const_data_ptr<T>()},
          std::max(g.attention.padding(), g.convolution.padding())};
}

std::tuple<Tensor, Tensor> forward(const Tensor& x, const Tensor& qkv_weight,
                                   const Tensor& qkv_bias, const Tensor& position,
                                   const Tensor& conv_weight, const Tensor& alpha,
                                   int64_t kernel_size, int64_t stride, int64_t dilation,
                                   double scale) {
  constexpr const char* op = "acmix_layer_forward";
  const auto g = checked_geometry(op, {x, qkv_weight, qkv_bias, position, conv_weight, alpha},
                                  kernel_size, stride, dilation);
  const Arguments a{x.contiguous(),        qkv_weight.contiguous(),  qkv_bias.contiguous(),
                    position.contiguous(), conv_weight.contiguous(), alpha};
  const Tensor out = empty(g.result_sizes(g.channels()), x.options());
  const Tensor lse = empty(g.result_sizes(g.heads()), x.options());
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), op, [&] {
    const auto channels = channels_of<scalar_t>(a.x);
    std::vector<Maps<scalar_t>> results;
    write_each(results, g.by_output(out));
    const LayerForward<scalar_t> call{input_of<scalar_t>(g, a, channels),
                                      {g.attention,
                                       static_cast<scalar_t>(scale),
                                       {},
                                       {},
                                       {},
                                       a.position.const_data_ptr<scalar_t>(),
                                       write<scalar_t>(g.by_head(out)),
                                       alpha.item<scalar_t>(),
                                       true,
                                       lse.mutable_data_ptr<scalar_t>()},
                                      {g.convolution, g.heads(), 1, false, false, nullptr,
                                       results.data(), a.conv_weight.const_data_ptr<scalar_t>(),
                                       g.group_size(), g.output_size(), g.positions(), 1}};
    const auto kernels = layer_kernels<scalar_t>();
    run_items(op, g.items(),
              [&](int64_t begin, int64_t end) { kernels.forward(call, begin, end); });
  });
  return {out, lse};
}

// Sums what all bands and images computed, always in the same order: (B, groups, bands, size).
template <typename T>
void sum_bands(const Geometry& g, const T* from, int64_t groups, int64_t size, T* to,
               bool by_group) {
  const int64_t bands = g.attention.bands();
  for (int64_t item = 0; item < g.attention.batch * groups * bands; ++item) {
    T* total = to + (by_group ? item / bands % groups * size : 0);
    for (int64_t i = 0; i < size; ++i) total[i] += from[item * size + i];
  }
}

std::tuple<Tensor, Tensor, Tensor, Tensor> backward(
    const Tensor& grad_out, const Tensor& x, const Tensor& qkv_weight, const Tensor& qkv_bias,
    const Tensor& position, const Tensor& conv_weight, const Tensor& alpha, const Tensor& lse,
    int64_t kernel_size, int64_t stride, int64_t dilation, double scale) {
  constexpr const char* op = "acmix_layer_backward";
  const auto g = checked_geometry(op, {x, qkv_weight, qkv_bias, position, conv_weight, alpha},
                                  kernel_size, stride, dilation);
  const auto& shape = g.attention;
  check_tensor(op, "grad_out", grad_out, 4);
  check_dtype(op, "grad_out", grad_out, x.scalar_type());
  check_shape(op, "grad_out", grad_out, g.result_sizes(g.channels()));
  check_tensor(op, "lse", lse, 4);
  check_dtype(op, "lse", lse, x.scalar_type());
  check_shape(op, "lse", lse, g.result_sizes(g.heads()));
  const Arguments a{x.contiguous(),        qkv_weight.contiguous(),  qkv_bias.contiguous(),
                    position.contiguous(), conv_weight.contiguous(), alpha};
  const Tensor grad_ = grad_out.contiguous(), lse_ = lse.contiguous();
  // Of q, k and v.
  const Tensor grads = empty({x.size(0), 3 * g.channels(), x.size(2), x.size(3)}, x.options());
  Tensor grad_position = empty({x.size(0), g.head_channels(), x.size(2), x.size(3)}, x.options());
  const Tensor grad_conv = at::zeros(conv_weight.sizes(), x.options());
  const Tensor grad_alpha = at::zeros({1}, x.options());
  const Tensor halo =
      empty({shape.items(), 2, halo_rows(shape), shape.channels, shape.width}, x.options());
  const Tensor partial_conv = empty({g.convolution.items(), g.group_size()}, x.options());
  const Tensor partial_alpha = empty({shape.items()}, x.options());
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), op, [&] {
    const auto channels = channels_of<scalar_t>(a.x);
    const auto outputs = read_each<scalar_t>(g.by_output(grad_));
    std::vector<Maps<scalar_t>> maps;
    write_each(maps, grads.unflatten(1, {3 * g.heads(), g.head_channels()}));
    const auto grad_of = [&](int64_t which) {
      return write<scalar_t>(g.by_head(grads.narrow(1, which * g.channels(), g.channels())));
    };
    auto grad_q = grad_of(0);
    grad_q.row_stride *= stride;  // the kernels move them within these rows
    const LayerBackward<scalar_t> call{
        input_of<scalar_t>(g, a, channels),
        {shape,
         static_cast<scalar_t>(scale),
         {},
         {},
         {},
         a.position.const_data_ptr<scalar_t>(),
         read<scalar_t>(g.by_head(grad_)),
         alpha.item<scalar_t>(),
         lse_.const_data_ptr<scalar_t>(),
         grad_q,
         grad_of(1),
         grad_of(2),
         partial_alpha.mutable_data_ptr<scalar_t>(),
         halo.mutable_data_ptr<scalar_t>(),
         grad_position.mutable_data_ptr<scalar_t>()},
        // Inputs and outputs are exchanged, and the kernels are rotated by 180 degrees.
        {g.conv_gradient, 3 * g.heads(), stride, false, true, outputs.data(), maps.data(),
         a.conv_weight.const_data_ptr<scalar_t>() + g.positions() - 1, g.group_size(),
         g.positions(), g.output_size(), -1},
        {g.convolution, g.heads(), false, nullptr, outputs.data(),
         partial_conv.mutable_data_ptr<scalar_t>()}};
    const auto kernels = layer_kernels<scalar_t>();
    run_items(op, g.items(),
              [&](int64_t begin, int64_t end) { kernels.backward(call, begin, end); });
    const auto attention = attention_kernels<scalar_t>();
    run_items(op, shape.batch * shape.channels,
              [&](int64_t begin, int64_t end) { attention.fold_halo(call.attention, begin, end); });
    sum_bands(g, partial_conv.const_data_ptr<scalar_t>(), g.head_channels(), g.group_size(),
              grad_conv.mutable_data_ptr<scalar_t>(), true);
    sum_bands(g, partial_alpha.const_data_ptr<scalar_t>(), g.heads(), 1,
              grad_alpha.mutable_data_ptr<scalar_t>(), false);
  });
  grad_position = x.size(0) == 1 ? grad_position[0] : grad_position.sum(0);
  return {grads, grad_position, grad_conv, grad_alpha};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(acmix_mm, library) {
  library.def(
      "acmix_layer_forward(Tensor x, Tensor qkv_weight, Tensor qkv_bias, Tensor position, "
      "Tensor conv_weight, Tensor alpha, int kernel_size, int stride, int dilation, float scale) "
      "-> (Tensor out, Tensor lse)");
  library.def(
      "acmix_layer_backward(Tensor grad_out, Tensor x, Tensor qkv_weight, Tensor qkv_bias, "
      "Tensor position, Tensor conv_weight, Tensor alpha, Tensor lse, int kernel_size, "
      "int stride, int dilation, float scale) -> (Tensor grad_qkv, Tensor grad_position, "
      "Tensor grad_conv_weight, Tensor grad_alpha)");
}

TORCH_LIBRARY_IMPL(acmix_mm, CPU, library) {
  library.impl("acmix_layer_forward", forward);
  library.impl("acmix_layer_backward", backward);
}

}  // namespace acmix
