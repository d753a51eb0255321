// One step of stochastic gradient descent over all parameters of a network, in a few operators on lists of tensors.
#include <ATen/ops/_foreach_add.h>
#include <ATen/ops/_foreach_mul.h>
#include <ATen/ops/_foreach_sub.h>
#include <c10/util/Exception.h>

#include <cstring>
#include <exception>
#include <vector>

extern "C" void c2r_sgd_step(const at::Tensor* const* parameters, const at::Tensor* const* gradients,
                             const at::Tensor* const* buffers, size_t n, double lr, double momentum, double weight_decay,
                             char** message) {
  const auto list = [n](const at::Tensor* const* tensors) {
    std::vector<at::Tensor> out;
    for (size_t i = 0; i < n; ++i) out.push_back(*tensors[i]);
    return out;
  };
  try {
    const auto p = list(parameters), g = list(gradients), v = list(buffers);
    at::_foreach_mul_(v, momentum);
    at::_foreach_add_(v, g);
    if (weight_decay != 0) at::_foreach_add_(v, at::_foreach_mul(p, weight_decay));
    at::_foreach_sub_(p, at::_foreach_mul(v, lr));
  } catch (const c10::Error& error) {
    *message = strdup(error.what_without_backtrace());
  } catch (const std::exception& error) {
    *message = strdup(error.what());
  }
}
