// The gradient of a convolution without the rest of a backward pass, to measure it.

#include <ATen/core/Tensor.h>
#include <ATen/ops/convolution_backward.h>
#include <c10/util/Exception.h>

#include <cstring>
#include <exception>

// Of a 3x3 convolution with padding 1 and stride 1, and on the CPU with a bias, as networks have it there; results go to out[0] (x) and out[1] (weight), null where they are
// not wanted. Returns null, or a message that the caller frees.
extern "C" char* c2r_convolution_backward(const at::Tensor* gradient, const at::Tensor* x, const at::Tensor* weight, bool of_x,
                                          bool of_weight, at::Tensor** out) {
  try {
    const auto [x_gradient, weight_gradient, bias_gradient] =
        at::convolution_backward(*gradient, *x, *weight, at::IntArrayRef{weight->size(0)}, {1, 1}, {1, 1}, {1, 1}, false, {0, 0}, 1,
                                 {of_x, of_weight, of_weight && !gradient->is_cuda()});
    out[0] = of_x ? new at::Tensor(x_gradient) : nullptr;
    out[1] = of_weight ? new at::Tensor(weight_gradient) : nullptr;
    return nullptr;
  } catch (const c10::Error& error) {
    return strdup(error.what_without_backtrace());
  } catch (const std::exception& error) {
    return strdup(error.what());
  }
}
