// The passes over a batch, without libtorch: plain arrays in, plain arrays out.
#pragma once

#include <cstdint>

#include "planes.h"

namespace c2r {

// All planes of a batch, [N * C] of height x width.
struct Planes {
  int64_t channels, height, width;
  const float* x;
  const float* weight;  // [C]
  const float* bias;    // [C]
};

// Planes from..to: moments [N * C] and out [N * C, height/2, width/2].
void norm_relu_pool_forward(const Planes& p, int64_t from, int64_t to, float eps, Moments* moments, float* out);

// Planes from..to: gradient of x [N * C, height, width], and of weight and bias through each plane, [N * C].
//
// * gradient: of what the forward pass gave.
void norm_relu_pool_backward(const Planes& p, int64_t from, int64_t to, const Moments* moments, const float* gradient, float* out,
                             float* weight_gradient, float* bias_gradient);

// Sizes and parameters of a block, and what its passes read and write for image after image.
struct FirstBlockPass {
  int64_t filters, height, width;
  float eps;
  const float *x, *weight, *bias, *norm_weight, *norm_bias;
  Moments* moments;        // [N, F]
  float* out;              // [N, F, H/2, W/2]
  const float* gradient;   // of out
  float* image_gradient;   // [N, C, H, W], zero at first; null if it is not wanted
  float* weight_gradient;  // [N, F, C, 3, 3]; null if it is not wanted
  float* norm_gradients;   // [2, N, F]
  int64_t n;
};

// Whether there is a kernel for images of this size.
bool has_first_block(int64_t channels, int64_t filters, int64_t height, int64_t width);

// Images from..to.
void first_block_forward(const FirstBlockPass& b, int channels, int64_t from, int64_t to);
void first_block_backward(const FirstBlockPass& b, int channels, int64_t from, int64_t to);

}  // namespace c2r
