// A 3x3 convolution with few input channels, padding 1 and stride 1, plane by plane, and its gradients.
//
// With three channels libtorch's convolution is bound by memory: it writes the large output that the normalization reads
// again. Here an image and a few planes of its output stay in the first-level cache.
#pragma once

#include <cstdint>
#include <cstring>

#include "planes.h"
#include "vectors.h"

namespace c2r {

// Output channels that are computed side by side, and input channels at most.
constexpr int GROUP = 2;
constexpr int MOST_CHANNELS = 4;
// Vectors that are computed side by side: a row of 32 values in registers of eight, two of 16, four of 8.
constexpr int TILE = 4;

// A plane with a border of zeros: (height + 2) x (width + 2).
C2R_INLINE void pad(const float* plane, int64_t height, int64_t width, float* padded) {
  const int64_t stride = width + 2;
  memset(padded, 0, sizeof(float) * stride);
  memset(padded + (height + 1) * stride, 0, sizeof(float) * stride);
  for (int64_t row = 0; row < height; ++row) {
    float* to = padded + (row + 1) * stride;
    to[0] = to[width + 1] = 0;
    memcpy(to + 1, plane + row * width, sizeof(float) * width);
  }
}

// GROUP planes of the convolution.
//
// * padded: `channels` padded planes. weight: [GROUP, channels, 3, 3]. bias: [GROUP]. out: [GROUP, height, width].
// * W: width; V: vector type whose length divides it; the rows of a tile divide height.
template <typename V, int W>
C2R_INLINE void convolve(const float* padded, int channels, int64_t height, const float* weight, const float* bias, float* out) {
  constexpr int LANES_V = sizeof(V) / sizeof(float), PER_ROW = W / LANES_V < TILE ? W / LANES_V : TILE, ROWS = TILE / PER_ROW;
  constexpr int64_t STRIDE = W + 2;
  const int64_t plane = (height + 2) * STRIDE;
  for (int64_t row = 0; row < height; row += ROWS)
    for (int64_t column = 0; column < W; column += PER_ROW * LANES_V) {
      V sum[GROUP][TILE];
      for (int g = 0; g < GROUP; ++g)
        for (int t = 0; t < TILE; ++t) sum[g][t] = V{} + bias[g];
      for (int c = 0; c < channels; ++c)
#pragma GCC unroll 9
        for (int k = 0; k < 9; ++k) {
          const float* from = padded + c * plane + (row + k / 3) * STRIDE + column + k % 3;
          V x[TILE];
#pragma GCC unroll 4
          for (int t = 0; t < TILE; ++t) x[t] = load<V>(from + (t / PER_ROW) * STRIDE + (t % PER_ROW) * LANES_V);
#pragma GCC unroll 2
          for (int g = 0; g < GROUP; ++g) {
            const float w = weight[(g * channels + c) * 9 + k];
#pragma GCC unroll 4
            for (int t = 0; t < TILE; ++t) sum[g][t] += x[t] * w;
          }
        }
      for (int g = 0; g < GROUP; ++g)
        for (int t = 0; t < TILE; ++t)
          store(out + (g * height + row + t / PER_ROW) * W + column + (t % PER_ROW) * LANES_V, sum[g][t]);
    }
}

// Adds what GROUP planes of gradients give for the images.
//
// * padded: GROUP padded planes. weight: [GROUP, C, 3, 3]. out: [C, height, width], added to.
template <typename V, int W, int C>
C2R_INLINE void image_gradient(const float* padded, int64_t height, const float* weight, float* out) {
  constexpr int LANES_V = sizeof(V) / sizeof(float), PER_ROW = W / LANES_V < TILE ? W / LANES_V : TILE, ROWS = TILE / PER_ROW;
  constexpr int64_t STRIDE = W + 2;
  const int64_t plane = (height + 2) * STRIDE;
  for (int64_t row = 0; row < height; row += ROWS)
    for (int64_t column = 0; column < W; column += PER_ROW * LANES_V) {
      V sum[C][TILE];
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c)
#pragma GCC unroll 4
        for (int t = 0; t < TILE; ++t) sum[c][t] = load<V>(out + (c * height + row + t / PER_ROW) * W + column + (t % PER_ROW) * LANES_V);
      for (int g = 0; g < GROUP; ++g)
#pragma GCC unroll 9
        for (int k = 0; k < 9; ++k) {
          const float* from = padded + g * plane + (row + 2 - k / 3) * STRIDE + column + 2 - k % 3;
          V x[TILE];
#pragma GCC unroll 4
          for (int t = 0; t < TILE; ++t) x[t] = load<V>(from + (t / PER_ROW) * STRIDE + (t % PER_ROW) * LANES_V);
#pragma GCC unroll 4
          for (int c = 0; c < C; ++c) {
            const float w = weight[(g * C + c) * 9 + k];
#pragma GCC unroll 4
            for (int t = 0; t < TILE; ++t) sum[c][t] += x[t] * w;
          }
        }
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c)
#pragma GCC unroll 4
        for (int t = 0; t < TILE; ++t) store(out + (c * height + row + t / PER_ROW) * W + column + (t % PER_ROW) * LANES_V, sum[c][t]);
    }
}

// The gradient of the weights of one output channel from one image.
//
// * padded: `channels` padded planes of the image. gradient: [height, width]. out: [channels, 3, 3].
template <typename V, int W>
C2R_INLINE void weight_gradient(const float* padded, int channels, int64_t height, const float* gradient, float* out) {
  constexpr int LANES_V = sizeof(V) / sizeof(float);
  constexpr int64_t STRIDE = W + 2;
  for (int c = 0; c < channels; ++c) {
    V sum[9] = {};
    const float* plane = padded + c * (height + 2) * STRIDE;
    for (int64_t row = 0; row < height; ++row)
      for (int64_t column = 0; column < W; column += LANES_V) {
        const V g = load<V>(gradient + row * W + column);
#pragma GCC unroll 9
        for (int k = 0; k < 9; ++k) sum[k] += g * load<V>(plane + (row + k / 3) * STRIDE + column + k % 3);
      }
    for (int k = 0; k < 9; ++k) {
      float all = 0;
      for (int i = 0; i < LANES_V; ++i) all += sum[k][i];
      out[c * 9 + k] = all;
    }
  }
}

}  // namespace c2r
