#pragma once

#include <ATen/core/Tensor.h>

namespace c2r {

// Average pooling 2x2 of ReLU of the instance normalization of x [N, C, H, W], with weight and bias [C].
at::Tensor norm_relu_pool(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, double eps);

// norm_relu_pool of the convolution of x [N, C, H, W] with weight [F, C, 3, 3] and bias [F], padding 1 and stride 1. Where
// there is a kernel for images of one or three channels, nothing of the size of the convolution's output is written or kept.
at::Tensor block(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, const at::Tensor& norm_weight,
                 const at::Tensor& norm_bias, double eps);

}  // namespace c2r
