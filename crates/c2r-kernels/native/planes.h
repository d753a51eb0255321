// Instance normalization, ReLU and 2x2 average pooling of one plane (one channel of one image), and the gradient.
//
// A plane of a few kilobytes stays in the first-level cache, so each is read from memory once and a quarter of it is
// written. Sums run over LANES independent accumulators: the compiler vectorizes them as they stand, and the result is
// the same whatever the width of the registers, but for the contraction of a product and a sum.
#pragma once

#include <cstdint>

namespace c2r {

constexpr int LANES = 32;

// What a plane is normalized with: y = relu(scale * x + shift), where scale = weight / deviation.
struct Moments {
  float mean;
  float inverse_deviation;
};

#define C2R_INLINE static inline __attribute__((always_inline))

// Sum of the accumulators, which it overwrites.
C2R_INLINE float total(float* lanes) {
  for (int n = LANES / 2; n > 0; n /= 2)
    for (int i = 0; i < n; ++i) lanes[i] += lanes[i + n];
  return lanes[0];
}

C2R_INLINE Moments moments(const float* x, int64_t n, float eps) {
  float lanes[LANES] = {};
  int64_t whole = n - n % LANES;
  for (int64_t at = 0; at < whole; at += LANES)
    for (int i = 0; i < LANES; ++i) lanes[i] += x[at + i];
  for (int64_t at = whole; at < n; ++at) lanes[at - whole] += x[at];
  const float mean = total(lanes) / static_cast<float>(n);
  for (float& lane : lanes) lane = 0;
  for (int64_t at = 0; at < whole; at += LANES)
    for (int i = 0; i < LANES; ++i) {
      const float apart = x[at + i] - mean;
      lanes[i] += apart * apart;
    }
  for (int64_t at = whole; at < n; ++at) {
    const float apart = x[at] - mean;
    lanes[at - whole] += apart * apart;
  }
  const float variance = total(lanes) / static_cast<float>(n);
  return {mean, 1.0f / __builtin_sqrtf(variance + eps)};
}

// NaN stays NaN, as in libtorch's relu.
C2R_INLINE float relu(float v) { return v < 0 ? 0 : v; }

// * x: the plane, height x width. out: height/2 x width/2.
// * W: width where the compiler may know it, else 0.
template <int64_t W>
C2R_INLINE Moments forward(const float* x, int64_t height, int64_t any_width, float weight, float bias, float eps, float* out) {
  const int64_t width = W ? W : any_width, half = width / 2;
  const Moments m = moments(x, height * width, eps);
  const float scale = weight * m.inverse_deviation;
  const float shift = bias - m.mean * scale;
  for (int64_t row = 0; row + 1 < height; row += 2) {
    const float* above = x + row * width;
    const float* below = above + width;
    float* to = out + row / 2 * half;
    for (int64_t j = 0; j < half; ++j) {
      const float left = relu(above[2 * j] * scale + shift) + relu(below[2 * j] * scale + shift);
      const float right = relu(above[2 * j + 1] * scale + shift) + relu(below[2 * j + 1] * scale + shift);
      to[j] = 0.25f * (left + right);
    }
  }
  return m;
}

// Gradients of the plane, and of weight and bias through this plane.
//
// * gradient: of the output, height/2 x width/2.
// * out: gradient of x, height x width.
template <int64_t W>
C2R_INLINE void backward(const float* x, const float* gradient, int64_t height, int64_t any_width, float weight, float bias,
                         Moments m, float* out, float* weight_gradient, float* bias_gradient) {
  const int64_t width = W ? W : any_width, half = width / 2, n = height * width;
  const float scale = weight * m.inverse_deviation;
  const float shift = bias - m.mean * scale;
  // A quarter of an output's gradient goes to each of its four values. Kept in out until the sums are known.
  for (int64_t row = 0; row + 1 < height; row += 2) {
    const float* from = gradient + row / 2 * half;
    float* above = out + row * width;
    float* below = above + width;
    for (int64_t j = 0; j < half; ++j) {
      const float quarter = 0.25f * from[j];
      above[2 * j] = quarter;
      above[2 * j + 1] = quarter;
      below[2 * j] = quarter;
      below[2 * j + 1] = quarter;
    }
    if (width % 2) above[width - 1] = below[width - 1] = 0;
  }
  if (height % 2)
    for (int64_t j = 0; j < width; ++j) out[(height - 1) * width + j] = 0;
  // None of it passes where ReLU is flat.
  float sum[LANES] = {}, sum_x[LANES] = {};
  const int64_t whole = n - n % LANES;
  for (int64_t at = 0; at < whole; at += LANES)
    for (int i = 0; i < LANES; ++i) {
      const float g = x[at + i] * scale + shift <= 0 ? 0.0f : out[at + i];
      out[at + i] = g;
      sum[i] += g;
      sum_x[i] += g * (x[at + i] - m.mean);
    }
  for (int64_t at = whole; at < n; ++at) {
    const float g = x[at] * scale + shift <= 0 ? 0.0f : out[at];
    out[at] = g;
    sum[at - whole] += g;
    sum_x[at - whole] += g * (x[at] - m.mean);
  }
  const float all = total(sum), all_x = total(sum_x) * m.inverse_deviation;
  *weight_gradient = all_x;
  *bias_gradient = all;
  const float mean_g = all / static_cast<float>(n);
  const float mean_gx = all_x / static_cast<float>(n) * m.inverse_deviation;
  for (int64_t at = 0; at < n; ++at) out[at] = scale * (out[at] - mean_g - (x[at] - m.mean) * mean_gx);
}

}  // namespace c2r
