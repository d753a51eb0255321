// The operators c2r::norm_relu_pool and c2r::first_block with their gradients: kernels.h for float on the CPU, libtorch's
// operators for everything else, second derivatives among it; norm_relu_pool on a GPU through cuda.h.

#include "operators.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/util/Exception.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <exception>
#include <string>
#include <tuple>

#include "cuda.h"
#include "kernels.h"

namespace c2r {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// About 16,000 values are worth a thread.
int64_t grain(const Planes& p) { return std::max<int64_t>(1, 16384 / std::max<int64_t>(1, p.height * p.width)); }

at::Tensor plain(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, double eps) {
  return at::avg_pool2d(at::relu(at::group_norm(x, weight.size(0), weight, bias, eps)), {2, 2}, {2, 2});
}

Planes planes(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
  return {x.size(1), x.size(2), x.size(3), x.const_data_ptr<float>(), weight.const_data_ptr<float>(), bias.const_data_ptr<float>()};
}

class NormReluPool : public torch::autograd::Function<NormReluPool> {
 public:
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& given, const at::Tensor& given_weight,
                            const at::Tensor& given_bias, double eps) {
    at::AutoDispatchBelowADInplaceOrView below;
    const at::Tensor x = given.contiguous(), weight = given_weight.contiguous(), bias = given_bias.contiguous();
    at::Tensor out = at::empty({x.size(0), x.size(1), x.size(2) / 2, x.size(3) / 2}, x.options());
    at::Tensor moments = at::empty({x.size(0) * x.size(1), 2}, x.options());
    if (x.is_cuda()) {
      cuda::forward(x, weight, bias, eps, moments, out);
    } else {
      const Planes p = planes(x, weight, bias);
      auto* m = reinterpret_cast<Moments*>(moments.mutable_data_ptr<float>());
      float* to = out.mutable_data_ptr<float>();
      at::parallel_for(0, moments.size(0), grain(p), [&](int64_t from, int64_t until) {
        norm_relu_pool_forward(p, from, until, static_cast<float>(eps), m, to);
      });
    }
    ctx->save_for_backward({given, given_weight, given_bias, moments});
    ctx->saved_data["eps"] = eps;
    return out;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    const variable_list saved = ctx->get_saved_variables();
    const at::Tensor &given = saved[0], &given_weight = saved[1], &given_bias = saved[2];
    if (at::GradMode::is_enabled()) {
      // A second derivative will be asked for, which libtorch's operators have.
      const double eps = ctx->saved_data["eps"].toDouble();
      variable_list inputs, found;
      for (const at::Tensor& input : {given, given_weight, given_bias})
        if (input.requires_grad()) inputs.push_back(input);
      found = torch::autograd::grad({plain(given, given_weight, given_bias, eps)}, inputs, {gradients[0]}, true, true);
      variable_list all;
      size_t at = 0;
      for (const at::Tensor& input : {given, given_weight, given_bias}) all.push_back(input.requires_grad() ? found[at++] : at::Tensor());
      all.emplace_back();
      return all;
    }
    const at::Tensor x = given.contiguous(), weight = given_weight.contiguous(), bias = given_bias.contiguous();
    const at::Tensor gradient = gradients[0].contiguous();
    at::Tensor out = at::empty_like(x, at::MemoryFormat::Contiguous);
    at::Tensor sums = at::empty({2, x.size(0), x.size(1)}, x.options());
    if (x.is_cuda()) {
      cuda::backward(x, weight, bias, saved[3], gradient, out, sums);
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

bool has_kernel(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
  for (const at::Tensor& t : {x, weight, bias})
    if (t.device() != x.device() || t.scalar_type() != at::kFloat || t.is_sparse()) return false;
  if (x.numel() == 0 || x.size(2) < 2 || x.size(3) < 2) return false;
  return x.is_cpu() || (x.is_cuda() && cuda::ready(x));
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

at::Tensor one_by_one(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, const at::Tensor& norm_weight,
                      const at::Tensor& norm_bias, double eps) {
  return norm_relu_pool(at::conv2d(x, weight, bias, {1, 1}, {1, 1}), norm_weight, norm_bias, eps);
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

variable_list contiguous(const variable_list& tensors) {
  variable_list all;
  for (size_t i = 0; i < 5; ++i) all.push_back(tensors[i].contiguous());
  return all;
}

class FirstBlock : public torch::autograd::Function<FirstBlock> {
 public:
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
                            const at::Tensor& norm_weight, const at::Tensor& norm_bias, double eps) {
    at::AutoDispatchBelowADInplaceOrView below;
    const variable_list inputs = contiguous({x, weight, bias, norm_weight, norm_bias});
    FirstBlockPass b = pass_over(inputs, eps);
    at::Tensor out = at::empty({b.n, b.filters, b.height / 2, b.width / 2}, inputs[0].options());
    at::Tensor moments = at::empty({b.n, b.filters, 2}, inputs[0].options());
    b.out = out.mutable_data_ptr<float>();
    b.moments = reinterpret_cast<Moments*>(moments.mutable_data_ptr<float>());
    run(first_block_forward, b, x.size(1));
    ctx->save_for_backward({x, weight, bias, norm_weight, norm_bias, moments});
    ctx->saved_data["eps"] = eps;
    return out;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    const variable_list saved = ctx->get_saved_variables();
    const double eps = ctx->saved_data["eps"].toDouble();
    variable_list found(6);
    if (at::GradMode::is_enabled()) {
      // A second derivative will be asked for, which libtorch's operators have.
      variable_list wanted;
      for (size_t i = 0; i < 5; ++i)
        if (saved[i].requires_grad()) wanted.push_back(saved[i]);
      const at::Tensor y = one_by_one(saved[0], saved[1], saved[2], saved[3], saved[4], eps);
      const variable_list all = torch::autograd::grad({y}, wanted, {gradients[0]}, true, true);
      for (size_t i = 0, at = 0; i < 5; ++i)
        if (saved[i].requires_grad()) found[i] = all[at++];
      return found;
    }
    const variable_list inputs = contiguous(saved);
    const at::Tensor &x = inputs[0], &weight = inputs[1], gradient = gradients[0].contiguous();
    FirstBlockPass b = pass_over(inputs, eps);
    at::Tensor moments = saved[5], weight_gradients, norm_gradients = at::empty({2, b.n, b.filters}, x.options());
    b.moments = reinterpret_cast<Moments*>(moments.mutable_data_ptr<float>());
    b.gradient = gradient.const_data_ptr<float>();
    b.norm_gradients = norm_gradients.mutable_data_ptr<float>();
    if (ctx->needs_input_grad(0)) {
      found[0] = at::zeros_like(x);
      b.image_gradient = found[0].mutable_data_ptr<float>();
    }
    if (ctx->needs_input_grad(1)) {
      weight_gradients = at::empty({b.n, b.filters, x.size(1), 3, 3}, x.options());
      b.weight_gradient = weight_gradients.mutable_data_ptr<float>();
    }
    run(first_block_backward, b, x.size(1));
    if (ctx->needs_input_grad(1)) found[1] = weight_gradients.sum(0);
    // The normalization subtracts it again.
    if (ctx->needs_input_grad(2)) found[2] = at::zeros_like(inputs[2]);
    if (ctx->needs_input_grad(3)) found[3] = norm_gradients.select(0, 0).sum(0);
    if (ctx->needs_input_grad(4)) found[4] = norm_gradients.select(0, 1).sum(0);
    return found;
  }
};

}  // namespace

at::Tensor first_block(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, const at::Tensor& norm_weight,
                       const at::Tensor& norm_bias, double eps) {
  bool fits = x.dim() == 4 && x.numel() > 0 && weight.dim() == 4 && weight.size(1) == x.size(1) && weight.size(2) == 3 &&
              weight.size(3) == 3 && has_first_block(x.size(1), weight.size(0), x.size(2), x.size(3));
  for (const at::Tensor& t : {x, weight, bias, norm_weight, norm_bias})
    fits = fits && t.device().is_cpu() && t.scalar_type() == at::kFloat;
  for (const at::Tensor& t : {bias, norm_weight, norm_bias}) fits = fits && t.dim() == 1 && t.size(0) == weight.size(0);
  return fits ? FirstBlock::apply(x, weight, bias, norm_weight, norm_bias, eps)
              : one_by_one(x, weight, bias, norm_weight, norm_bias, eps);
}

TORCH_LIBRARY(c2r, library) {
  library.def("norm_relu_pool(Tensor x, Tensor weight, Tensor bias, float eps) -> Tensor", &norm_relu_pool);
  library.def("first_block(Tensor x, Tensor weight, Tensor bias, Tensor norm_weight, Tensor norm_bias, float eps) -> Tensor",
              &first_block);
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

extern "C" at::Tensor* c2r_first_block(const at::Tensor* x, const at::Tensor* weight, const at::Tensor* bias,
                                       const at::Tensor* norm_weight, const at::Tensor* norm_bias, double eps, char** message) {
  return guarded(message, [&] { return c2r::first_block(*x, *weight, *bias, *norm_weight, *norm_bias, eps); });
}
