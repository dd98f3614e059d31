// SPDX-License-Identifier: Apache-2.0
// torch.ops.acmix_mm.window_attention_forward and _backward on the CPU.
#include <ATen/Dispatch.h>
#include <ATen/ops/zeros.h>
#include <c10/util/Optional.h>  // std::optional, but not in torch 2.1
#include <torch/library.h>

#include <tuple>

#include "checks.h"
#include "dispatch.h"
#include "tensors.h"

namespace acmix {
namespace {

// The arguments that both operators take.
struct Arguments {
  Tensor qkv, bias;
  const c10::optional<Tensor>&row_masks, &column_masks;
  int64_t side;
};

// Masks (W, M, M) of the last W of `most` rows or columns of windows.
void check_masks(const char* op, const char* name, const c10::optional<Tensor>& masks,
                 const Arguments& a, int64_t most) {
  if (!masks.has_value()) return;
  check_tensor(op, name, *masks, 3);
  check_dtype(op, name, *masks, a.qkv.scalar_type());
  const int64_t count = masks->size(0);
  check_shape(op, name, *masks, {count, a.side, a.side});
  TORCH_CHECK(count <= most, op, ": ", name, " has ", count, " masks for ", most, " windows");
}

// Returns the geometry after checking the arguments.
WindowGrid checked_grid(const char* op, const Arguments& a) {
  check_tensor(op, "qkv", a.qkv, 6);
  const auto type = a.qkv.scalar_type();
  TORCH_CHECK(type == at::kFloat || type == at::kDouble, op,
              ": qkv must be float32 or float64, got ", type);
  const int64_t batch = a.qkv.size(0), height = a.qkv.size(1), width = a.qkv.size(2);
  const int64_t heads = a.qkv.size(4), channels = a.qkv.size(5);
  check_shape(op, "qkv", a.qkv, {batch, height, width, 3, heads, channels});
  TORCH_CHECK(a.side > 0 && a.side <= LARGEST_SIZE, op, ": window_size must be from 1 to ",
              LARGEST_SIZE, ", got ", a.side);
  TORCH_CHECK(height % a.side == 0 && width % a.side == 0, op,
              ": the height and width of qkv must be multiples of window_size ", a.side,
              ", got shape ", a.qkv.sizes());
  check_tensor(op, "bias", a.bias, 3);
  check_dtype(op, "bias", a.bias, type);
  check_shape(op, "bias", a.bias, {heads, a.side * a.side, a.side * a.side});
  // See `check_scratch`.
  constexpr double most = 0x1p30;
  const double pixels = static_cast<double>(a.side) * a.side;
  const double elements = 3 * pixels * pixels + 7 * pixels * channels;
  TORCH_CHECK(elements <= most, op, ": window_size ", a.side, " with ", channels,
              " channels needs scratch memory for ", elements, " elements; at most ", most,
              " are supported");
  const WindowGrid grid{batch, height / a.side, width / a.side, a.side, heads, channels};
  check_masks(op, "row_masks", a.row_masks, a, grid.rows);
  check_masks(op, "column_masks", a.column_masks, a, grid.columns);
  return grid;
}

// Maps (B, H, W, N, D) whose channels are next to each other.
Tensor with_near_channels(const Tensor& maps) {
  return maps.stride(-1) == 1 ? maps : maps.contiguous();
}

// (B, H, W, N, D) as (B, N, D, H, W).
Tensor by_head(const Tensor& maps) { return maps.permute({0, 3, 4, 1, 2}); }

// Terms of the logits (A, keys, queries), times log2(e), in rows of whole cache lines.
Tensor in_lines(const Tensor& terms) {
  constexpr double log2_e = 1.4426950408889634;
  const int64_t line = 64 / terms.element_size(), queries = terms.size(2);
  const Tensor padded =
      at::zeros({terms.size(0), terms.size(1), ceil_div(queries, line) * line}, terms.options());
  padded.narrow(2, 0, queries).copy_(terms).mul_(log2_e);
  return padded;
}

// What is added to the logits, with its memory.
struct Terms {
  Tensor bias, row_masks, column_masks;

  explicit Terms(const Arguments& a) : bias(in_lines(a.bias.transpose(1, 2))) {
    // Along one axis of a window: (A, queries, keys). Queries differ in the other axis, too.
    const auto expand = [&](const Tensor& masks, int64_t axis) {
      const Tensor by_key = masks.transpose(1, 2).unsqueeze(axis);
      return in_lines(by_key.expand({masks.size(0), a.side, a.side, a.side}).flatten(2));
    };
    if (a.row_masks.has_value()) row_masks = expand(*a.row_masks, 3);
    if (a.column_masks.has_value()) column_masks = expand(*a.column_masks, 2);
  }

  template <typename T>
  LogitTerms<T> read() const {
    const auto count = [](const Tensor& masks) { return masks.defined() ? masks.size(0) : 0; };
    const auto data = [](const Tensor& masks) {
      return masks.defined() ? masks.const_data_ptr<T>() : nullptr;
    };
    return {bias.size(2),    bias.const_data_ptr<T>(), count(row_masks),
            data(row_masks), count(column_masks),      data(column_masks)};
  }
};

std::tuple<Tensor, Tensor> forward(const Tensor& qkv, const Tensor& bias,
                                   const c10::optional<Tensor>& row_masks,
                                   const c10::optional<Tensor>& column_masks, int64_t window_size,
                                   double scale) {
  constexpr const char* op = "window_attention_forward";
  const Arguments a{qkv, bias, row_masks, column_masks, window_size};
  const WindowGrid grid = checked_grid(op, a);
  const Tensor qkv_ = with_near_channels(qkv);
  const Terms terms(a);
  const Tensor out =
      empty({qkv.size(0), qkv.size(1), qkv.size(2), grid.heads, grid.channels}, qkv.options());
  const Tensor lse = empty({grid.windows(), grid.heads, grid.pixels()}, qkv.options());
  AT_DISPATCH_FLOATING_TYPES(qkv.scalar_type(), op, [&] {
    const auto part = [&](int64_t i) { return read<scalar_t>(by_head(qkv_.select(3, i))); };
    const WindowForward<scalar_t> call{
        grid,    static_cast<scalar_t>(scale),  terms.read<scalar_t>(),          part(0), part(1),
        part(2), write<scalar_t>(by_head(out)), lse.mutable_data_ptr<scalar_t>()};
    const auto kernels = window_kernels<scalar_t>();
    run_items(op, grid.items(),
              [&](int64_t begin, int64_t end) { kernels.forward(call, begin, end); });
  });
  return {out, lse};
}

std::tuple<Tensor, Tensor> backward(const Tensor& grad_out, const Tensor& qkv, const Tensor& bias,
                                    const c10::optional<Tensor>& row_masks,
                                    const c10::optional<Tensor>& column_masks, const Tensor& lse,
                                    int64_t window_size, double scale) {
  constexpr const char* op = "window_attention_backward";
  const Arguments a{qkv, bias, row_masks, column_masks, window_size};
  const WindowGrid grid = checked_grid(op, a);
  check_tensor(op, "grad_out", grad_out, 5);
  check_dtype(op, "grad_out", grad_out, qkv.scalar_type());
  check_shape(op, "grad_out", grad_out,
              {qkv.size(0), qkv.size(1), qkv.size(2), grid.heads, grid.channels});
  check_tensor(op, "lse", lse, 3);
  check_dtype(op, "lse", lse, qkv.scalar_type());
  check_shape(op, "lse", lse, {grid.windows(), grid.heads, grid.pixels()});
  const Tensor qkv_ = with_near_channels(qkv), grad_out_ = with_near_channels(grad_out);
  const Tensor lse_ = lse.contiguous();
  const Terms terms(a);
  const Tensor grads = empty(qkv.sizes(), qkv.options());
  const Tensor grad_bias = at::zeros(terms.bias.sizes(), qkv.options());
  const Tensor partial =
      empty({grid.groups(), grid.heads, grid.pixels(), terms.bias.size(2)}, qkv.options());
  AT_DISPATCH_FLOATING_TYPES(qkv.scalar_type(), op, [&] {
    const auto part = [&](int64_t i) { return read<scalar_t>(by_head(qkv_.select(3, i))); };
    const auto grad = [&](int64_t i) { return write<scalar_t>(by_head(grads.select(3, i))); };
    const WindowBackward<scalar_t> call{grid,
                                        static_cast<scalar_t>(scale),
                                        terms.read<scalar_t>(),
                                        part(0),
                                        part(1),
                                        part(2),
                                        read<scalar_t>(by_head(grad_out_)),
                                        lse_.const_data_ptr<scalar_t>(),
                                        grad(0),
                                        grad(1),
                                        grad(2),
                                        partial.mutable_data_ptr<scalar_t>()};
    const auto kernels = window_kernels<scalar_t>();
    run_items(op, grid.items(),
              [&](int64_t begin, int64_t end) { kernels.backward(call, begin, end); });
  });
  // Always in the same order, whatever the number of threads.
  for (int64_t group = 0; group < grid.groups(); ++group) grad_bias.add_(partial[group]);
  return {grads, grad_bias.narrow(2, 0, grid.pixels()).transpose(1, 2).contiguous()};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(acmix_mm, library) {
  library.def(
      "window_attention_forward(Tensor qkv, Tensor bias, Tensor? row_masks, Tensor? column_masks, "
      "int window_size, float scale) -> (Tensor out, Tensor lse)");
  library.def(
      "window_attention_backward(Tensor grad_out, Tensor qkv, Tensor bias, Tensor? row_masks, "
      "Tensor? column_masks, Tensor lse, int window_size, float scale) "
      "-> (Tensor grad_qkv, Tensor grad_bias)");
}

TORCH_LIBRARY_IMPL(acmix_mm, CPU, library) {
  library.impl("window_attention_forward", forward);
  library.impl("window_attention_backward", backward);
}

}  // namespace acmix
