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
  // Pairs of rows that are pooled together, so that narrow planes fill the registers, too.
  constexpr int64_t PAIRS = W == 16 || W == 8 ? 4 : W == 4 ? 2 : 1;
  if (PAIRS > 1 && height % (2 * PAIRS) == 0) {
    for (int64_t row = 0; row < height; row += 2 * PAIRS) {
      float sums[PAIRS * W + 1];  // Not empty where W is 0.
      for (int64_t pair = 0; pair < PAIRS; ++pair) {
        const float* above = x + (row + 2 * pair) * W;
        for (int64_t j = 0; j < W; ++j)
          sums[pair * W + j] = relu(above[j] * scale + shift) + relu(above[W + j] * scale + shift);
      }
      float* to = out + row / 2 * half;
      for (int64_t j = 0; j < PAIRS * W / 2; ++j) to[j] = 0.25f * (sums[2 * j] + sums[2 * j + 1]);
    }
    return m;
  }
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

// What the backward pass adds up: gradients behind ReLU, and these times the distance from the mean.
struct Sums {
  float g[LANES] = {}, gx[LANES] = {};
};

C2R_INLINE float through_relu(float x, float gradient, float scale, float shift) {
  return x * scale + shift <= 0 ? 0.0f : gradient;
}

// Writes to out what of the output's gradient passes ReLU, and adds it up. A quarter goes to each of four values.
C2R_INLINE void behind_relu(const float* x, const float* gradient, int64_t height, int64_t width, float scale, float shift,
                            float mean, float* out, Sums& sums) {
  const int64_t half = width / 2, n = height * width, whole = n - n % LANES;
  for (int64_t row = 0; row + 1 < height; row += 2)
    for (int64_t j = 0; j < half; ++j) {
      float* to = out + row * width + 2 * j;
      to[0] = to[1] = to[width] = to[width + 1] = 0.25f * gradient[row / 2 * half + j];
    }
  if (width % 2)
    for (int64_t row = 0; row < height; ++row) out[row * width + width - 1] = 0;
  if (height % 2)
    for (int64_t j = 0; j < width; ++j) out[(height - 1) * width + j] = 0;
  const auto add = [&](int64_t at, int64_t lane) {
    const float g = through_relu(x[at], out[at], scale, shift);
    out[at] = g;
    sums.g[lane] += g;
    sums.gx[lane] += g * (x[at] - mean);
  };
  for (int64_t at = 0; at < whole; at += LANES)
    for (int i = 0; i < LANES; ++i) add(at + i, i);
  for (int64_t at = whole; at < n; ++at) add(at, at - whole);
}

// The same for ROWS rows of a width that the compiler knows; their values fill all lanes evenly.
template <int64_t W, int64_t ROWS>
C2R_INLINE void rows_behind_relu(const float* x, const float* gradient, float scale, float shift, float mean, float* out, Sums& sums) {
  float quarters[ROWS * W];
  for (int64_t pair = 0; pair < ROWS / 2; ++pair) {
    float* to = quarters + 2 * pair * W;
    for (int64_t j = 0; j < W / 2; ++j) {
      const float quarter = 0.25f * gradient[pair * (W / 2) + j];
      to[2 * j] = to[2 * j + 1] = quarter;
      to[W + 2 * j] = to[W + 2 * j + 1] = quarter;
    }
  }
  for (int64_t at = 0; at < ROWS * W; at += LANES)
    for (int i = 0; i < LANES; ++i) {
      const float g = through_relu(x[at + i], quarters[at + i], scale, shift);
      out[at + i] = g;
      sums.g[i] += g;
      sums.gx[i] += g * (x[at + i] - mean);
    }
}

// Gradients of the plane, and of weight and bias through this plane.
//
// * gradient: of the output, height/2 x width/2.
// * out: gradient of x, height x width.
template <int64_t W>
C2R_INLINE void backward(const float* x, const float* gradient, int64_t height, int64_t any_width, float weight, float bias,
                         Moments m, float* out, float* weight_gradient, float* bias_gradient) {
  const int64_t width = W ? W : any_width, n = height * width;
  const float scale = weight * m.inverse_deviation;
  const float shift = bias - m.mean * scale;
  constexpr int64_t ROWS = W == 0 || W >= LANES / 2 ? 2 : LANES / W;
  Sums sums;
  if (W && height % ROWS == 0) {
    constexpr int64_t KNOWN = W ? W : LANES;
    for (int64_t row = 0; row < height; row += ROWS)
      rows_behind_relu<KNOWN, ROWS>(x + row * W, gradient + row / 2 * (W / 2), scale, shift, m.mean, out + row * W, sums);
  } else {
    behind_relu(x, gradient, height, width, scale, shift, m.mean, out, sums);
  }
  const float all = total(sums.g), all_x = total(sums.gx) * m.inverse_deviation;
  *weight_gradient = all_x;
  *bias_gradient = all;
  const float mean_g = all / static_cast<float>(n);
  const float mean_gx = all_x / static_cast<float>(n) * m.inverse_deviation;
  for (int64_t at = 0; at < n; ++at) out[at] = scale * (out[at] - mean_g - (x[at] - m.mean) * mean_gx);
}

}  // namespace c2r
