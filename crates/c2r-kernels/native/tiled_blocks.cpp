// Blocks of a ConvNet with Winograd's convolution (winograd.h): convolution, instance normalization, ReLU and 2x2 average pooling,
// image by image, so that what one step writes is still in the cache when the next reads it.
#include <memory>

#include "cpu.h"
#include "kernels.h"
#include "winograd.h"

namespace c2r {
namespace {

// A lambda does not inherit the target of the function around it; inlined there, it is compiled for that target.
#define C2R_LAMBDA __attribute__((always_inline))

// Sizes of a pass, which do not depend on the image.
//
// * TW: tiles in a row.
template <int TW>
struct Tiling {
  int64_t height, tiles, rows, in_stride, out_stride;

  // * inputs, outputs: channels of the convolution, which is that of the gradient in a backward pass.
  Tiling(const TiledBlockPass& b, int64_t inputs, int64_t outputs)
      : height(b.height / 2), tiles(height * TW), rows(std::min(height, std::max<int64_t>(1, CHUNK / TW))) {
    // Products do not follow each other at a power of two, which would send them all to the same places of the cache.
    in_stride = inputs * rows * TW + 16;
    out_stride = outputs * rows * TW + 16;
  }
};

// Memory for one image; nothing is read that was not written.
struct TiledRoom {
  std::unique_ptr<float[]> bordered, factors, products, planes;

  template <int TW>
  TiledRoom(const Tiling<TW>& t, int64_t filters)
      : bordered(new float[4 * (t.rows + 1) * (TW + 1)]),
        factors(new float[PRODUCTS * t.in_stride]),
        products(new float[PRODUCTS * t.out_stride]),
        planes(new float[filters * 4 * t.tiles]) {}
};

// The convolution of one image, chunk by chunk.
//
// * row(c, i, a, even, odd): as in with_border, of input channel c.
// * out(f, from, here, products): takes the products of output channel f, `here` rows of tiles.
template <typename V, typename Narrow, int TW, typename Row, typename Out>
C2R_INLINE void convolve_tiles(const Tiling<TW>& t, const TiledRoom& room, const float* filters, int64_t inputs, int64_t outputs, Row row, Out out) {
  for (int64_t from = 0; from < t.height; from += t.rows) {
    const int64_t here = std::min(t.rows, t.height - from), tiles = here * TW;
    for (int64_t c = 0; c < inputs; ++c) {
      with_border<TW>(t.height, from, here, room.bordered.get(),
                      [&](int64_t i, int a, float* even, float* odd) C2R_LAMBDA { row(c, i, a, even, odd); });
      image_factors<Narrow, TW>(room.bordered.get(), here, room.factors.get() + c * tiles, t.in_stride);
    }
    multiply<V>({filters, room.factors.get(), room.products.get(), inputs, outputs, tiles}, inputs * outputs, t.in_stride, t.out_stride);
    for (int64_t f = 0; f < outputs; ++f) out(f, from, here, room.products.get() + f * tiles);
  }
}

// Products of `here` rows of tiles as sub-planes [4] of `stride`.
template <typename V>
C2R_INLINE void to_places(const float* products, int64_t products_stride, int64_t tiles, float* out, int64_t stride) {
  for (int64_t t = 0; t < tiles; t += lanes<V>()) {
    V values[4];
    tile(products + t, products_stride, values);
    for (int place = 0; place < 4; ++place) store(out + place * stride + t, values[place]);
  }
}

// Sub-planes [4] of `stride` as rows of a plane: 2 * rows of 2 * TW.
template <int TW>
C2R_INLINE void to_plane(const float* places, int64_t stride, int64_t rows, float* plane) {
  for (int64_t i = 0; i < rows; ++i)
    for (int a = 0; a < 2; ++a) {
      const float* even = places + 2 * a * stride + i * TW;
      float* to = plane + (2 * i + a) * 2 * TW;
      for (int j = 0; j < TW; ++j) {
        to[2 * j] = even[j];
        to[2 * j + 1] = even[stride + j];
      }
    }
}

// Normalization, ReLU and pooling of one plane, [4][tiles].
template <typename V>
C2R_INLINE Moments pooled(const float* x, int64_t tiles, float weight, float bias, float eps, float* out) {
  const Moments m = moments(x, 4 * tiles, eps);
  const float scale = weight * m.inverse_deviation, shift = bias - m.mean * scale;
  for (int64_t t = 0; t < tiles; t += lanes<V>()) {
    V sum = {};
    for (int place = 0; place < 4; ++place) {
      const V y = load<V>(x + place * tiles + t) * scale + shift;
      sum += y < 0 ? V{} : y;
    }
    store(out + t, 0.25f * sum);
  }
  return m;
}

// The gradient of that for plane `at` of all: to out, [4][tiles].
template <typename V>
C2R_INLINE void through_norm(const TiledBlockPass& b, int64_t at, int64_t tiles, float* out) {
  const float *x = b.features + 4 * at * tiles, *gradient = b.gradient + at * tiles;
  const int64_t f = at % b.filters;
  const Moments m = b.moments[at];
  const float scale = b.norm_weight[f] * m.inverse_deviation, shift = b.norm_bias[f] - m.mean * scale;
  V sums = {}, sums_x = {};
  for (int64_t t = 0; t < tiles; t += lanes<V>()) {
    const V quarter = 0.25f * load<V>(gradient + t);
    for (int place = 0; place < 4; ++place) {
      const V value = load<V>(x + place * tiles + t);
      const V g = value * scale + shift <= 0 ? V{} : quarter;
      store(out + place * tiles + t, g);
      sums += g;
      sums_x += g * (value - m.mean);
    }
  }
  float all = 0, all_x = 0;
  for (int i = 0; i < lanes<V>(); ++i) {
    all += sums[i];
    all_x += sums_x[i];
  }
  all_x *= m.inverse_deviation;
  b.norm_gradients[at] = all_x;
  b.norm_gradients[b.n * b.filters + at] = all;
  const float values = static_cast<float>(4 * tiles), mean = all / values, mean_x = all_x / values * m.inverse_deviation;
  for (int64_t t = 0; t < 4 * tiles; t += lanes<V>())
    store(out + t, scale * (load<V>(out + t) - mean - (load<V>(x + t) - m.mean) * mean_x));
}

template <typename V, typename Narrow, int TW>
C2R_INLINE void tiled_forward(const TiledBlockPass& b, int64_t first, int64_t until) {
  const Tiling<TW> t(b, b.channels, b.filters);
  const TiledRoom room(t, b.features ? 0 : b.filters);
  for (int64_t n = first; n < until; ++n) {
    float* features = b.features ? b.features + n * b.filters * 4 * t.tiles : room.planes.get();
    convolve_tiles<V, Narrow>(
        t, room, b.factors, b.channels, b.filters,
        [&](int64_t c, int64_t i, int a, float* even, float* odd) C2R_LAMBDA {
          const float* x = b.x + ((n * b.channels + c) * b.height + 2 * i + a) * 2 * TW;
          for (int j = 0; j < TW; ++j) {
            even[j] = x[2 * j];
            odd[j] = x[2 * j + 1];
          }
        },
        [&](int64_t f, int64_t from, int64_t here, const float* products) C2R_LAMBDA {
          to_places<V>(products, t.out_stride, here * TW, features + 4 * f * t.tiles + from * TW, t.tiles);
        });
    for (int64_t f = 0; f < b.filters; ++f) {
      const int64_t at = n * b.filters + f;
      b.moments[at] = pooled<V>(features + 4 * f * t.tiles, t.tiles, b.norm_weight[f], b.norm_bias[f], b.eps, b.out + at * t.tiles);
    }
  }
}

template <typename V, typename Narrow, int TW>
C2R_INLINE void tiled_backward(const TiledBlockPass& b, int64_t first, int64_t until) {
  const Tiling<TW> t(b, b.filters, b.channels);
  const TiledRoom room(t, b.filters);
  const int64_t plane = b.height * 2 * TW;
  float* gradients = room.planes.get();
  for (int64_t n = first; n < until; ++n) {
    for (int64_t f = 0; f < b.filters; ++f) {
      const int64_t at = n * b.filters + f;
      through_norm<V>(b, at, t.tiles, gradients + 4 * f * t.tiles);
      if (b.feature_gradient) to_plane<TW>(gradients + 4 * f * t.tiles, t.tiles, t.height, b.feature_gradient + at * plane);
    }
    if (!b.x_gradient) continue;
    convolve_tiles<V, Narrow>(
        t, room, b.factors, b.filters, b.channels,
        [&](int64_t f, int64_t i, int a, float* even, float* odd) C2R_LAMBDA {
          const float* g = gradients + (4 * f + 2 * a) * t.tiles + i * TW;
          memcpy(even, g, sizeof(float) * TW);
          memcpy(odd, g + t.tiles, sizeof(float) * TW);
        },
        [&](int64_t c, int64_t from, int64_t here, const float* products) C2R_LAMBDA {
          float places[4 * CHUNK];
          to_places<V>(products, t.out_stride, here * TW, places, CHUNK);
          to_plane<TW>(places, CHUNK, here, b.x_gradient + (n * b.channels + c) * plane + from * 4 * TW);
        });
  }
}

// image_factors takes vectors that divide a row of tiles.
#define C2R_TILED(NAME, SUFFIX, ATTRIBUTE, WIDE)                                        \
  ATTRIBUTE void NAME##_##SUFFIX(const TiledBlockPass& b, int64_t from, int64_t to) {   \
    typedef VectorOf<WIDE>::type V;                                                     \
    typedef VectorOf<8>::type V8;                                                       \
    typedef VectorOf<4>::type V4;                                                       \
    switch (b.width) {                                                                  \
      case 8: return NAME<V, V4, 4>(b, from, to);                                       \
      case 16: return NAME<V, V8, 8>(b, from, to);                                      \
      case 32: return NAME<V, V, 16>(b, from, to);                                      \
      default: return NAME<V, V, 32>(b, from, to);                                      \
    }                                                                                   \
  }

#if defined(__x86_64__)
C2R_TILED(tiled_forward, avx2, C2R_AVX2, 8)
C2R_TILED(tiled_backward, avx2, C2R_AVX2, 8)
C2R_TILED(tiled_forward, avx512, C2R_AVX512, 16)
C2R_TILED(tiled_backward, avx512, C2R_AVX512, 16)
#endif

// A vector of 16 needs as many tiles.
bool is_wide(const TiledBlockPass& b) { return level() == Level::avx512 && b.height * b.width % 64 == 0; }

}  // namespace

// Of other processors it is not known whether this is faster than libtorch's convolution there. With the few
// channels of images it does not pay.
bool has_tiled_block(int64_t channels, int64_t filters, int64_t height, int64_t width) {
  const bool known = width == 8 || width == 16 || width == 32 || width == 64;
  return level() != Level::any && known && height % 2 == 0 && height * width % 32 == 0 && channels % BLOCK == 0 && filters % BLOCK == 0;
}

int64_t tiled_block_factors(int64_t channels, int64_t filters) { return PRODUCTS * channels * filters; }

void tiled_block_factors(const float* weight, int64_t channels, int64_t filters, bool of_gradient, float* out) {
  const int64_t of_filter = channels * 9;
  filter_factors(of_gradient ? Filters{weight, channels, filters, 9, of_filter, true} : Filters{weight, filters, channels, of_filter, 9, false},
                 out);
}

#if defined(__x86_64__)
void tiled_block_forward(const TiledBlockPass& b, int64_t from, int64_t to) {
  is_wide(b) ? tiled_forward_avx512(b, from, to) : tiled_forward_avx2(b, from, to);
}

void tiled_block_backward(const TiledBlockPass& b, int64_t from, int64_t to) {
  is_wide(b) ? tiled_backward_avx512(b, from, to) : tiled_backward_avx2(b, from, to);
}
#else
void tiled_block_forward(const TiledBlockPass&, int64_t, int64_t) {}
void tiled_block_backward(const TiledBlockPass&, int64_t, int64_t) {}
#endif

}  // namespace c2r
