// A 3x3 convolution with padding 1 and stride 1 by F(2x2, 3x3), Winograd's minimal filtering (Lavin and Gray, "Fast Algorithms for
// Convolutional Neural Networks", CVPR 2016): each 2x2 tile of the output takes 16 products for a pair of channels, where the
// definition takes 36.
//
// A plane is kept as four sub-planes, one for each place in a tile: [4][tiles], place 2 a + b holding rows 2 i + a and columns
// 2 j + b. A tile is what is pooled together, and the values of neighbouring tiles lie side by side, so nothing here has to be
// shuffled between the lanes of a vector.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "planes.h"
#include "vectors.h"

namespace c2r {

// Filters whose weights lie side by side.
constexpr int BLOCK = 4;
// Products of a tile for a pair of channels.
constexpr int PRODUCTS = 16;
// Tiles at a time: few enough for their products to stay in the second-level cache.
constexpr int64_t CHUNK = 64;

// Rows of tiles from..from + rows of a plane with the border that their filters reach: [2][2][rows + 1][TW + 1], odd rows first,
// odd columns first. What lies before the first row and column is odd, what lies after the last is even.
//
// * row: `row(i, a, even, odd)` writes the TW values of the even and of the odd columns of row 2 i + a.
// * height: of the plane, in tiles.
template <int TW, typename Row>
C2R_INLINE void with_border(int64_t height, int64_t from, int64_t rows, float* bordered, Row row) {
  constexpr int64_t STRIDE = TW + 1;
  const int64_t part = (rows + 1) * STRIDE;
  for (int64_t i = 0; i <= rows; ++i)
    for (int is_even = 0; is_even < 2; ++is_even) {
      float* odd = bordered + 2 * is_even * part + i * STRIDE;
      float* even = odd + part;
      const int64_t tile = from + i - (is_even ? 0 : 1);
      if (tile < 0 || tile >= height) {
        memset(odd, 0, sizeof(float) * STRIDE);
        memset(even, 0, sizeof(float) * STRIDE);
        continue;
      }
      odd[0] = even[TW] = 0;
      row(tile, is_even ? 0 : 1, even, odd + 1);
    }
}

// The factors of the image for each product: B^T d B. out: [PRODUCTS] of `stride`, each [rows][TW].
//
// * V: a vector whose length divides TW.
template <typename V, int TW>
C2R_INLINE void image_factors(const float* bordered, int64_t rows, float* out, int64_t stride) {
  constexpr int64_t STRIDE = TW + 1;
  const int64_t part = (rows + 1) * STRIDE;
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < TW; j += lanes<V>()) {
      V d[4][4], e[4][4];
#pragma GCC unroll 4
      for (int r = 0; r < 4; ++r) {
        const float* odd = bordered + 2 * (r % 2) * part + (i + r / 2) * STRIDE + j;
        const float* even = odd + part;
        d[r][0] = load<V>(odd);
        d[r][1] = load<V>(even);
        d[r][2] = load<V>(odd + 1);
        d[r][3] = load<V>(even + 1);
      }
#pragma GCC unroll 4
      for (int c = 0; c < 4; ++c) {
        e[0][c] = d[0][c] - d[2][c];
        e[1][c] = d[1][c] + d[2][c];
        e[2][c] = d[2][c] - d[1][c];
        e[3][c] = d[1][c] - d[3][c];
      }
      float* to = out + i * TW + j;
#pragma GCC unroll 4
      for (int r = 0; r < 4; ++r, to += 4 * stride) {
        store(to, e[r][0] - e[r][2]);
        store(to + stride, e[r][1] + e[r][2]);
        store(to + 2 * stride, e[r][2] - e[r][1]);
        store(to + 3 * stride, e[r][1] - e[r][3]);
      }
    }
}

// Says where the weight of output f and input c is, and whether its 3x3 values are turned by 180 degrees, as the gradient needs.
struct Filters {
  const float* weight;
  int64_t outputs, inputs, output_stride, input_stride;
  bool turned;

  float at(int64_t f, int64_t c, int k) const { return weight[f * output_stride + c * input_stride + (turned ? 8 - k : k)]; }
};

// The factors of the filters: G g G^T as [PRODUCTS][outputs / BLOCK][inputs][BLOCK].
static inline void filter_factors(const Filters& filters, float* out) {
  const int64_t step = filters.outputs * filters.inputs;
  for (int64_t f = 0; f < filters.outputs; f += BLOCK)
    for (int64_t c = 0; c < filters.inputs; ++c) {
      float g[9][BLOCK], e[4][3][BLOCK];
      for (int k = 0; k < 9; ++k)
        for (int b = 0; b < BLOCK; ++b)
          g[k][b] = filters.at(f + b, c, k);
      for (int j = 0; j < 3; ++j)
        for (int b = 0; b < BLOCK; ++b) {
          const float ends = 0.5f * (g[j][b] + g[6 + j][b]), middle = 0.5f * g[3 + j][b];
          e[0][j][b] = g[j][b];
          e[1][j][b] = ends + middle;
          e[2][j][b] = ends - middle;
          e[3][j][b] = g[6 + j][b];
        }
      float* to = out + (f * filters.inputs + c * BLOCK);
      for (int r = 0; r < 4; ++r, to += 4 * step)
        for (int b = 0; b < BLOCK; ++b) {
          const float ends = 0.5f * (e[r][0][b] + e[r][2][b]), middle = 0.5f * e[r][1][b];
          to[b] = e[r][0][b];
          to[step + b] = ends + middle;
          to[2 * step + b] = ends - middle;
          to[3 * step + b] = e[r][2][b];
        }
    }
}

// The numbers that one of the PRODUCTS reads and writes, for all channels.
struct Products {
  const float* filters;  // [outputs / BLOCK][inputs][BLOCK]
  const float* images;   // [inputs] of `tiles`
  float* out;            // [outputs] of `tiles`
  int64_t inputs, outputs, tiles;
};

// Sums over input channels for BLOCKS * BLOCK filters from f and T vectors of tiles from t.
template <typename V, int BLOCKS, int T>
C2R_INLINE void sum_products(const Products& s, int64_t f, int64_t t) {
  const float *filters = s.filters + f * s.inputs, *images = s.images + t;
  float* out = s.out + f * s.tiles + t;
  V sum[BLOCKS * BLOCK][T];
#pragma GCC unroll 16
  for (int g = 0; g < BLOCKS * BLOCK; ++g)
#pragma GCC unroll 4
    for (int i = 0; i < T; ++i) sum[g][i] = V{};
  for (int64_t c = 0; c < s.inputs; ++c) {
    V x[T];
#pragma GCC unroll 4
    for (int i = 0; i < T; ++i) x[i] = load<V>(images + c * s.tiles + i * lanes<V>());
#pragma GCC unroll 16
    for (int g = 0; g < BLOCKS * BLOCK; ++g) {
      const float w = filters[(g / BLOCK * s.inputs + c) * BLOCK + g % BLOCK];
#pragma GCC unroll 4
      for (int i = 0; i < T; ++i) sum[g][i] += x[i] * w;
    }
  }
#pragma GCC unroll 16
  for (int g = 0; g < BLOCKS * BLOCK; ++g)
#pragma GCC unroll 4
    for (int i = 0; i < T; ++i) store(out + g * s.tiles + i * lanes<V>(), sum[g][i]);
}

// The same for all filters: BLOCKS at a time, then what is left.
template <typename V, int BLOCKS, int T>
C2R_INLINE void sum_products_of_all(const Products& s, int64_t t) {
  int64_t f = 0;
  for (; f + BLOCKS * BLOCK <= s.outputs; f += BLOCKS * BLOCK) sum_products<V, BLOCKS, T>(s, f, t);
  for (; f < s.outputs; f += BLOCK) sum_products<V, 1, T>(s, f, t);
}

// All products, summed over input channels. As many sums at a time as hide the latency of an addition and fit into the
// registers: 8 to 12 of 16, 16 of 32.
//
// * s: of the first product. The strides lead from one product to the next.
template <typename V>
C2R_INLINE void multiply(Products s, int64_t filter_stride, int64_t image_stride, int64_t out_stride) {
  constexpr bool WIDE = lanes<V>() == 16;
  for (int k = 0; k < PRODUCTS; ++k, s.filters += filter_stride, s.images += image_stride, s.out += out_stride)
    for (int64_t t = 0; t < s.tiles;) {
      const int64_t left = (s.tiles - t) / lanes<V>();
      if (WIDE && left >= 4) {
        sum_products_of_all<V, 1, 4>(s, t);
        t += 4 * lanes<V>();
      } else if (!WIDE && (left == 3 || left > 4)) {
        sum_products_of_all<V, 1, 3>(s, t);
        t += 3 * lanes<V>();
      } else if (left >= 2) {
        sum_products_of_all<V, WIDE ? 2 : 1, 2>(s, t);
        t += 2 * lanes<V>();
      } else {
        sum_products_of_all<V, WIDE ? 4 : 2, 1>(s, t);
        t += lanes<V>();
      }
    }
}

// The four values of a tile from its products: A^T m A.
template <typename V>
C2R_INLINE void tile(const float* products, int64_t stride, V out[4]) {
  V rows[4][2];
#pragma GCC unroll 4
  for (int r = 0; r < 4; ++r, products += 4 * stride) {
    const V first = load<V>(products), second = load<V>(products + stride), third = load<V>(products + 2 * stride);
    rows[r][0] = first + second + third;
    rows[r][1] = second - third - load<V>(products + 3 * stride);
  }
#pragma GCC unroll 2
  for (int b = 0; b < 2; ++b) {
    out[b] = rows[0][b] + rows[1][b] + rows[2][b];
    out[2 + b] = rows[1][b] - rows[2][b] - rows[3][b];
  }
}

}  // namespace c2r
