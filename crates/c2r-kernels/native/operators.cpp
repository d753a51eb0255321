// The operators c2r::norm_relu_pool and c2r::block with their gradients: kernels.h for float on the CPU, cuda.h on a GPU,
// libtorch's operators for everything else, second derivatives among it.

#include "operators.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/autocast_mode.h>
#include <c10/util/Exception.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>
#include <torch/version.h>

#include <algorithm>
#include <exception>
#include <string>
#include <tuple>
#include <vector>

#include "cuda.h"
#include "kernels.h"

namespace c2r {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// About 16,000 values are worth a thread.
int64_t grain(const Planes& p) { return std::max<int64_t>(1, 16384 / std::max<int64_t>(1, p.height * p.width)); }

// On the CPU not channels last: there libtorch's gradient of group_norm writes to null if x wants none.
at::Tensor plain(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, double eps) {
  return at::avg_pool2d(at::relu(at::group_norm(x.contiguous(), weight.size(0), weight, bias, eps)), {2, 2}, {2, 2});
}

// Channels last is what convolutions on a GPU compute in.
at::MemoryFormat layout(const at::Tensor& x) { return x.is_cuda() ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous; }

// Negated when it is read, as the imaginary part of a conjugate is, or zeros without memory.
bool is_lazy(const at::Tensor& t) { return t.is_neg() || t._is_zerotensor(); }

// The gradient of an output for the kernels.
at::Tensor in_memory(const at::Tensor& gradient, at::MemoryFormat format) {
  return (is_lazy(gradient) ? gradient.clone() : gradient).contiguous(format);
}

// Float in the memory of x's device, and something to pool.
bool fits(const at::Tensor& x, at::TensorList tensors) {
  for (const at::Tensor& t : tensors)
    if (t.device() != x.device() || t.scalar_type() != at::kFloat || t.layout() != at::kStrided || is_lazy(t)) return false;
  return x.dim() == 4 && x.numel() > 0 && x.size(2) >= 2 && x.size(3) >= 2;
}

// The number of dimensions and the sizes of each.
std::vector<int64_t> sizes(at::TensorList tensors) {
  std::vector<int64_t> all;
  for (const at::Tensor& t : tensors) {
    all.push_back(t.dim());
    all.insert(all.end(), t.sizes().begin(), t.sizes().end());
  }
  return all;
}

constexpr const char* SIZES = "sizes";

// The kernels read as many values as the sizes of the inputs say. If `set_data` gives a saved input data of another size, libtorch
// does not notice.
void check_saved(AutogradContext* ctx, at::TensorList inputs, const at::Tensor& moments) {
  TORCH_CHECK(moments.device() == inputs[0].device() && fits(inputs[0], inputs) &&
                  sizes(inputs) == ctx->saved_data[SIZES].toIntVector(),
              "an input of a block was given data of another size, dtype or device after the forward pass, so it has no "
              "gradient; compute the output again");
}

Planes planes(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
  return {x.size(1), x.size(2), x.size(3), x.const_data_ptr<float>(), weight.const_data_ptr<float>(), bias.const_data_ptr<float>()};
}

// What a backward pass returns for all `n` arguments of its operator if a second derivative will be asked for: the gradients of
// those inputs, the first arguments, that are needed now.
//
// * y: what libtorch's operators give for the inputs.
variable_list differentiable(AutogradContext* ctx, const variable_list& inputs, const at::Tensor& y, const at::Tensor& gradient,
                             size_t n) {
  variable_list wanted, found(n);
  std::vector<size_t> places;
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (!ctx->needs_input_grad(i)) continue;
    wanted.push_back(inputs[i]);
    places.push_back(i);
  }
  if (places.empty()) return found;
  const variable_list all = torch::autograd::grad({y}, wanted, {gradient}, true, true);
  for (size_t at = 0; at < places.size(); ++at) found[places[at]] = all[at];
  return found;
}

class NormReluPool : public torch::autograd::Function<NormReluPool> {
 public:
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& given, const at::Tensor& given_weight,
                            const at::Tensor& given_bias, double eps) {
    at::AutoDispatchBelowADInplaceOrView below;
    const at::Tensor x = given.contiguous(layout(given)), weight = given_weight.contiguous(), bias = given_bias.contiguous();
    at::Tensor out = at::empty({x.size(0), x.size(1), x.size(2) / 2, x.size(3) / 2}, x.options(), layout(x));
    at::Tensor moments = at::empty({x.size(0) * x.size(1), 2}, x.options());
    if (x.is_cuda()) {
      cuda::norm_forward(x, weight, bias, eps, moments, out);
    } else {
      const Planes p = planes(x, weight, bias);
      auto* m = reinterpret_cast<Moments*>(moments.mutable_data_ptr<float>());
      float* to = out.mutable_data_ptr<float>();
      at::parallel_for(0, moments.size(0), grain(p), [&](int64_t from, int64_t until) {
        norm_relu_pool_forward(p, from, until, static_cast<float>(eps), m, to);
      });
    }
    ctx->save_for_backward({given, given_weight, given_bias, moments});
    ctx->saved_data[SIZES] = sizes({given, given_weight, given_bias});
    ctx->saved_data["eps"] = eps;
    return out;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    const variable_list saved = ctx->get_saved_variables();
    const at::Tensor &given = saved[0], &given_weight = saved[1], &given_bias = saved[2];
    if (at::GradMode::is_enabled()) {
      // A second derivative will be asked for, which libtorch's operators have.
      const at::Tensor y = plain(given, given_weight, given_bias, ctx->saved_data["eps"].toDouble());
      return differentiable(ctx, {given, given_weight, given_bias}, y, gradients[0], 4);
    }
    const at::Tensor gradient = in_memory(gradients[0], layout(given));
    check_saved(ctx, {given, given_weight, given_bias}, saved[3]);
    const at::Tensor x = given.contiguous(layout(given)), weight = given_weight.contiguous(), bias = given_bias.contiguous();
    at::Tensor out = at::empty_like(x, layout(x));
    at::Tensor sums = at::empty({2, x.size(0), x.size(1)}, x.options());
    if (x.is_cuda()) {
      cuda::norm_backward(x, weight, bias, saved[3], gradient, out, sums);
    } else {
      const Planes p = planes(x, weight, bias);
      const int64_t n = x.size(0) * p.channels;
      const auto* m = reinterpret_cast<const Moments*>(saved[3].const_data_ptr<float>());
      const float* from = gradient.const_data_ptr<float>();
      float* to = out.mutable_data_ptr<float>();
      float* of_weight = sums.mutable_data_ptr<float>();
      at::parallel_for(0, n, grain(p), [&](int64_t first, int64_t until) {
        norm_relu_pool_backward(p, first, until, m, from, to, of_weight, of_weight + n);
      });
    }
    at::Tensor weight_gradient, bias_gradient;
    if (ctx->needs_input_grad(1)) weight_gradient = sums.select(0, 0).sum(0);
    if (ctx->needs_input_grad(2)) bias_gradient = sums.select(0, 1).sum(0);
    return {out, weight_gradient, bias_gradient, at::Tensor()};
  }
};

// The kernels on a GPU for what a convolution of x gives.
bool ready_for_features(const at::Tensor& x, int64_t channels) {
  return x.is_cuda() && cuda::countable(x.size(0), channels, x.size(3)) && cuda::ready(x, {0, x.size(2), x.size(3)});
}

bool has_kernel(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
  return fits(x, {x, weight, bias}) && (x.is_cpu() || ready_for_features(x, x.size(1)));
}

}  // namespace

at::Tensor norm_relu_pool(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, double eps) {
  TORCH_CHECK(x.dim() == 4, "norm_relu_pool: x has ", x.dim(), " dimensions instead of [N, C, H, W]");
  TORCH_CHECK(weight.dim() == 1 && weight.size(0) == x.size(1) && bias.sizes() == weight.sizes(),
              "norm_relu_pool: weight ", weight.sizes(), " and bias ", bias.sizes(), " for ", x.size(1), " channels");
  return has_kernel(x, weight, bias) ? NormReluPool::apply(x, weight, bias, eps) : plain(x, weight, bias, eps);
}

namespace {

void run(void (*pass)(const FirstBlockPass&, int, int64_t, int64_t), const FirstBlockPass& b, int64_t channels) {
  at::parallel_for(0, b.n, 1, [&](int64_t from, int64_t to) { pass(b, static_cast<int>(channels), from, to); });
}

FirstBlockPass pass_over(const variable_list& inputs, double eps) {
  FirstBlockPass b = {};
  b.n = inputs[0].size(0);
  b.height = inputs[0].size(2);
  b.width = inputs[0].size(3);
  b.filters = inputs[1].size(0);
  b.eps = static_cast<float>(eps);
  const float** at[] = {&b.x, &b.weight, &b.bias, &b.norm_weight, &b.norm_bias};
  for (size_t i = 0; i < 5; ++i) *at[i] = inputs[i].const_data_ptr<float>();
  return b;
}

// * last: whether x and the convolution's weight become channels last, as a GPU convolves the features of a block before, which
//   are so already.
variable_list contiguous(const variable_list& tensors, bool last) {
  variable_list all;
  for (size_t i = 0; i < 5; ++i)
    all.push_back(tensors[i].contiguous(last && i < 2 ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous));
  return all;
}

// How a block is computed.
enum class Way {
  // One by one: what is in bf16 by autocast stays with libtorch, too.
  plain,
  // By the kernel for images, which convolves them itself.
  first,
  // By that for features: tile by tile on the CPU, and behind libtorch's convolution on a GPU.
  later,
};

// A pass over a block: what it reads, and what it leaves for the gradient.
struct Passed {
  at::Tensor out, moments;
  // What the convolution gave, where that was kept.
  at::Tensor features;
};

// What a backward pass finds. weight is of all images; the sums are those of each, [2, N, F].
struct Gradients {
  at::Tensor x, weight, sums;
};

Passed first_on_cpu(const variable_list& inputs, double eps) {
  FirstBlockPass b = pass_over(inputs, eps);
  Passed passed;
  passed.out = at::empty({b.n, b.filters, b.height / 2, b.width / 2}, inputs[0].options());
  passed.moments = at::empty({b.n, b.filters, 2}, inputs[0].options());
  b.out = passed.out.mutable_data_ptr<float>();
  b.moments = reinterpret_cast<Moments*>(passed.moments.mutable_data_ptr<float>());
  run(first_block_forward, b, inputs[0].size(1));
  return passed;
}

Gradients first_on_cpu(const variable_list& inputs, double eps, at::Tensor moments, const at::Tensor& gradient, bool of_x, bool of_weight) {
  const at::Tensor& x = inputs[0];
  FirstBlockPass b = pass_over(inputs, eps);
  Gradients found;
  at::Tensor weight_gradients;
  found.sums = at::empty({2, b.n, b.filters}, x.options());
  b.moments = reinterpret_cast<Moments*>(moments.mutable_data_ptr<float>());
  b.gradient = gradient.const_data_ptr<float>();
  b.norm_gradients = found.sums.mutable_data_ptr<float>();
  if (of_x) {
    found.x = at::zeros_like(x);
    b.image_gradient = found.x.mutable_data_ptr<float>();
  }
  if (of_weight) {
    weight_gradients = at::empty({b.n, b.filters, x.size(1), 3, 3}, x.options());
    b.weight_gradient = weight_gradients.mutable_data_ptr<float>();
  }
  run(first_block_backward, b, x.size(1));
  if (of_weight) found.weight = weight_gradients.sum(0);
  return found;
}

at::Tensor tiled_factors(const at::Tensor& weight, bool of_gradient) {
  const int64_t filters = weight.size(0), channels = weight.size(1);
  at::Tensor factors = at::empty({tiled_block_factors(channels, filters)}, weight.options());
  tiled_block_factors(weight.const_data_ptr<float>(), channels, filters, of_gradient, factors.mutable_data_ptr<float>());
  return factors;
}

TiledBlockPass tiled_pass_over(const variable_list& inputs, const at::Tensor& factors, at::Tensor& moments) {
  TiledBlockPass b = {};
  b.n = inputs[0].size(0);
  b.channels = inputs[0].size(1);
  b.height = inputs[0].size(2);
  b.width = inputs[0].size(3);
  b.filters = inputs[1].size(0);
  b.factors = factors.const_data_ptr<float>();
  b.norm_weight = inputs[3].const_data_ptr<float>();
  b.norm_bias = inputs[4].const_data_ptr<float>();
  b.moments = reinterpret_cast<Moments*>(moments.mutable_data_ptr<float>());
  return b;
}

void run(void (*pass)(const TiledBlockPass&, int64_t, int64_t), const TiledBlockPass& b) {
  at::parallel_for(0, b.n, 1, [&](int64_t from, int64_t to) { pass(b, from, to); });
}

// * keep: whether a gradient may be asked for.
Passed tiled_on_cpu(const variable_list& inputs, double eps, bool keep) {
  const at::Tensor& x = inputs[0];
  const at::Tensor factors = tiled_factors(inputs[1], false);
  Passed passed;
  passed.moments = at::empty({x.size(0), inputs[1].size(0), 2}, x.options());
  TiledBlockPass b = tiled_pass_over(inputs, factors, passed.moments);
  passed.out = at::empty({b.n, b.filters, b.height / 2, b.width / 2}, x.options());
  if (keep) passed.features = at::empty({b.n, b.filters, 4, b.height / 2, b.width / 2}, x.options());
  b.eps = static_cast<float>(eps);
  b.x = x.const_data_ptr<float>();
  b.features = keep ? passed.features.mutable_data_ptr<float>() : nullptr;
  b.out = passed.out.mutable_data_ptr<float>();
  run(tiled_block_forward, b);
  return passed;
}

Gradients tiled_on_cpu(const variable_list& inputs, at::Tensor moments, at::Tensor features, const at::Tensor& gradient, bool of_x,
                       bool of_weight) {
  const at::Tensor &x = inputs[0], &weight = inputs[1];
  const at::Tensor factors = tiled_factors(weight, true);
  TiledBlockPass b = tiled_pass_over(inputs, factors, moments);
  Gradients found;
  at::Tensor of_features;
  found.sums = at::empty({2, b.n, b.filters}, x.options());
  b.features = features.mutable_data_ptr<float>();
  b.gradient = gradient.const_data_ptr<float>();
  b.norm_gradients = found.sums.mutable_data_ptr<float>();
  if (of_x) {
    found.x = at::empty_like(x);
    b.x_gradient = found.x.mutable_data_ptr<float>();
  }
  if (of_weight) {
    of_features = at::empty({b.n, b.filters, b.height, b.width}, x.options());
    b.feature_gradient = of_features.mutable_data_ptr<float>();
  }
  run(tiled_block_backward, b);
  if (of_weight)
    std::tie(std::ignore, found.weight, std::ignore) = at::convolution_backward(
        of_features, x, weight, std::nullopt, {1, 1}, {1, 1}, {1, 1}, false, {0, 0}, 1, {false, true, false});
  return found;
}

constexpr at::MemoryFormat LAST = at::MemoryFormat::ChannelsLast;

cuda::First first_of(const variable_list& inputs) { return {inputs[0], inputs[1], inputs[3], inputs[4]}; }

// * first: without it, x and weight are channels last.
Passed on_gpu(const variable_list& inputs, double eps, bool first) {
  const at::Tensor &x = inputs[0], &weight = inputs[1];
  const int64_t n = x.size(0), filters = weight.size(0);
  Passed passed;
  passed.out = at::empty({n, filters, x.size(2) / 2, x.size(3) / 2}, x.options(), LAST);
  passed.moments = at::empty({n, filters, 2}, x.options());
  if (first) {
    cuda::first_forward(first_of(inputs), eps, passed.moments, passed.out);
  } else {
    // Without the bias, which the normalization subtracts again.
    passed.features = at::conv2d(x, weight, {}, {1, 1}, {1, 1}).contiguous(LAST);
    cuda::norm_forward(passed.features, inputs[3], inputs[4], eps, passed.moments, passed.out);
  }
  return passed;
}

Gradients on_gpu(const variable_list& inputs, const at::Tensor& moments, const at::Tensor& features, const at::Tensor& gradient,
                 bool of_x, bool of_weight) {
  const at::Tensor &x = inputs[0], &weight = inputs[1];
  Gradients found;
  found.sums = at::empty({2, x.size(0), weight.size(0)}, x.options());
  if (!features.defined()) {
    at::Tensor weight_gradients;
    if (of_x) found.x = at::empty_like(x);
    if (of_weight) weight_gradients = at::empty({x.size(0), weight.size(0), x.size(1), 3, 3}, x.options());
    cuda::first_backward(first_of(inputs), moments, gradient, found.x, weight_gradients, found.sums);
    if (of_weight) found.weight = weight_gradients.sum(0);
    return found;
  }
  at::Tensor of_features = at::empty_like(features, LAST);
  cuda::norm_backward(features, inputs[3], inputs[4], moments, gradient, of_features, found.sums);
  if (!of_x && !of_weight) return found;
  std::tie(found.x, found.weight, std::ignore) =
      at::convolution_backward(of_features, x, weight, std::nullopt, {1, 1}, {1, 1}, {1, 1}, false, {0, 0}, 1, {of_x, of_weight, false});
  if (of_weight) found.weight = found.weight.contiguous();
  return found;
}

class Block : public torch::autograd::Function<Block> {
 public:
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
                            const at::Tensor& norm_weight, const at::Tensor& norm_bias, double eps, bool keep, bool first) {
    at::AutoDispatchBelowADInplaceOrView below;
    const variable_list inputs = contiguous({x, weight, bias, norm_weight, norm_bias}, x.is_cuda() && !first);
    const Passed passed = x.is_cuda() ? on_gpu(inputs, eps, first)
                          : first     ? first_on_cpu(inputs, eps)
                                      : tiled_on_cpu(inputs, eps, keep);
    ctx->save_for_backward({x, weight, bias, norm_weight, norm_bias, passed.moments, passed.features});
    ctx->saved_data[SIZES] = sizes({x, weight, bias, norm_weight, norm_bias});
    ctx->saved_data["eps"] = eps;
    return passed.out;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    const variable_list saved = ctx->get_saved_variables();
    const double eps = ctx->saved_data["eps"].toDouble();
    if (at::GradMode::is_enabled()) {
      // No kernel: libtorch would compute its part again, and this may be the device's own thread (`making` in cuda.cpp).
      const at::Tensor y = plain(at::conv2d(saved[0], saved[1], saved[2], {1, 1}, {1, 1}), saved[3], saved[4], eps);
      return differentiable(ctx, {saved.begin(), saved.begin() + 5}, y, gradients[0], 8);
    }
    check_saved(ctx, {saved.data(), 5}, saved[5]);
    // What the convolution gave was kept by all but the kernels for images.
    const variable_list inputs = contiguous(saved, saved[0].is_cuda() && saved[6].defined());
    const at::Tensor gradient = in_memory(gradients[0], layout(inputs[0]));
    const bool of_x = ctx->needs_input_grad(0), of_weight = ctx->needs_input_grad(1);
    const Gradients of = inputs[0].is_cuda()    ? on_gpu(inputs, saved[5], saved[6], gradient, of_x, of_weight)
                         : saved[6].defined() ? tiled_on_cpu(inputs, saved[5], saved[6], gradient, of_x, of_weight)
                                              : first_on_cpu(inputs, eps, saved[5], gradient, of_x, of_weight);
    variable_list found = {of.x, of.weight, at::Tensor(), at::Tensor(), at::Tensor(), at::Tensor(), at::Tensor(), at::Tensor()};
    // The normalization subtracts it again.
    if (ctx->needs_input_grad(2)) found[2] = at::zeros_like(inputs[2]);
    if (ctx->needs_input_grad(3)) found[3] = of.sums.select(0, 0).sum(0);
    if (ctx->needs_input_grad(4)) found[4] = of.sums.select(0, 1).sum(0);
    return found;
  }
};

Way way_of(const variable_list& inputs) {
  const at::Tensor &x = inputs[0], &weight = inputs[1];
  bool all = fits(x, inputs) && weight.dim() == 4 && weight.size(0) > 0 && weight.size(1) == x.size(1) && weight.size(2) == 3 &&
             weight.size(3) == 3;
  for (size_t i = 2; i < inputs.size(); ++i) all = all && inputs[i].dim() == 1 && inputs[i].size(0) == weight.size(0);
  if (!all) return Way::plain;
  const int64_t channels = x.size(1), filters = weight.size(0), height = x.size(2), width = x.size(3);
  if (x.is_cpu()) {
    if (has_first_block(channels, filters, height, width)) return Way::first;
    const bool tiled = has_tiled_block(channels, filters, height, width) && !at::autocast::is_autocast_enabled(at::kCPU);
    return tiled ? Way::later : Way::plain;
  }
  if (!x.is_cuda() || at::autocast::is_autocast_enabled(at::kCUDA)) return Way::plain;
  if (cuda::countable(x.size(0), filters, width) && cuda::ready(x, {channels, height, width})) return Way::first;
  return ready_for_features(x, filters) ? Way::later : Way::plain;
}

}  // namespace

at::Tensor block(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, const at::Tensor& norm_weight,
                 const at::Tensor& norm_bias, double eps) {
  const variable_list inputs = {x, weight, bias, norm_weight, norm_bias};
  // Asked once: the answer for a GPU may change while this runs.
  const Way way = way_of(inputs);
  if (way == Way::plain) return norm_relu_pool(at::conv2d(x, weight, bias, {1, 1}, {1, 1}), norm_weight, norm_bias, eps);
  const bool keep = at::GradMode::is_enabled() &&
                    std::any_of(inputs.begin(), inputs.end(), [](const at::Tensor& t) { return t.requires_grad(); });
  return Block::apply(x, weight, bias, norm_weight, norm_bias, eps, keep, way == Way::first);
}

TORCH_LIBRARY(c2r, library) {
  library.def("norm_relu_pool(Tensor x, Tensor weight, Tensor bias, float eps) -> Tensor", &norm_relu_pool);
  library.def("block(Tensor x, Tensor weight, Tensor bias, Tensor norm_weight, Tensor norm_bias, float eps) -> Tensor", &block);
}

}  // namespace c2r

// Both return a new tensor, or null and a message that the caller frees.
namespace {
template <typename F>
at::Tensor* guarded(char** message, F compute) {
  try {
    return new at::Tensor(compute());
  } catch (const c10::Error& error) {
    *message = strdup(error.what_without_backtrace());
  } catch (const std::exception& error) {
    *message = strdup(error.what());
  }
  return nullptr;
}
}  // namespace

extern "C" at::Tensor* c2r_norm_relu_pool(const at::Tensor* x, const at::Tensor* weight, const at::Tensor* bias, double eps,
                                          char** message) {
  return guarded(message, [&] { return c2r::norm_relu_pool(*x, *weight, *bias, eps); });
}

extern "C" at::Tensor* c2r_block(const at::Tensor* x, const at::Tensor* weight, const at::Tensor* bias, const at::Tensor* norm_weight,
                                 const at::Tensor* norm_bias, double eps, char** message) {
  return guarded(message, [&] { return c2r::block(*x, *weight, *bias, *norm_weight, *norm_bias, eps); });
}

// The libtorch whose headers these are.
extern "C" void c2r_libtorch(int32_t* major, int32_t* minor) noexcept {
  *major = TORCH_VERSION_MAJOR;
  *minor = TORCH_VERSION_MINOR;
}
