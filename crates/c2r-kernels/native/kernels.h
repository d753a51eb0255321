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

// The same for a block that is convolved tile by tile (winograd.h). The convolution's bias is left out, because the normalization
// subtracts it.
struct TiledBlockPass {
  int64_t n, channels, filters, height, width;
  float eps;
  const float* factors;     // of tiled_block_factors, for the pass
  const float* x;           // [N, C, H, W]; the backward pass does not read it
  const float *norm_weight, *norm_bias;
  Moments* moments;         // [N, F]
  float* features;          // what the convolution gave, [N, F, 4, H/2, W/2]; null if no gradient will be asked for
  float* out;               // [N, F, H/2, W/2]
  const float* gradient;    // of out
  float* x_gradient;        // [N, C, H, W]; null if it is not wanted
  float* feature_gradient;  // [N, F, H, W]; null if it is not wanted
  float* norm_gradients;    // [2, N, F]
};

// Whether there is a kernel for features of this size on this processor.
bool has_tiled_block(int64_t channels, int64_t filters, int64_t height, int64_t width);

// What the convolution of a pass multiplies with, from its weight [F, C, 3, 3]: as many numbers as the first says.
int64_t tiled_block_factors(int64_t channels, int64_t filters);
void tiled_block_factors(const float* weight, int64_t channels, int64_t filters, bool of_gradient, float* out);

// Images from..to.
void tiled_block_forward(const TiledBlockPass& b, int64_t from, int64_t to);
void tiled_block_backward(const TiledBlockPass& b, int64_t from, int64_t to);

}  // namespace c2r
