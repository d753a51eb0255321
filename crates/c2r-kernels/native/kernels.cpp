// Compiled with full optimization, and apart from libtorch's headers, which take long.
#include "kernels.h"

#include <vector>

#include "cpu.h"
#include "first_planes.h"

namespace c2r {
namespace {

template <int64_t W>
C2R_INLINE void forward_planes(const Planes& p, int64_t from, int64_t to, float eps, Moments* moments, float* out) {
  const int64_t size = p.height * p.width, pooled = (p.height / 2) * (p.width / 2);
  for (int64_t i = from; i < to; ++i) {
    const int64_t c = i % p.channels;
    moments[i] = forward<W>(p.x + i * size, p.height, p.width, p.weight[c], p.bias[c], eps, out + i * pooled);
  }
}

template <int64_t W>
C2R_INLINE void backward_planes(const Planes& p, int64_t from, int64_t to, const Moments* moments, const float* gradient, float* out,
                                float* weight_gradient, float* bias_gradient) {
  const int64_t size = p.height * p.width, pooled = (p.height / 2) * (p.width / 2);
  for (int64_t i = from; i < to; ++i) {
    const int64_t c = i % p.channels;
    backward<W>(p.x + i * size, gradient + i * pooled, p.height, p.width, p.weight[c], p.bias[c], moments[i], out + i * size,
                weight_gradient + i, bias_gradient + i);
  }
}

// The widths of the field's networks are known to the compiler.
#define C2R_BY_WIDTH(NAME, ...)                     \
  switch (p.width) {                                \
    case 4: return NAME<4>(p, __VA_ARGS__);         \
    case 8: return NAME<8>(p, __VA_ARGS__);         \
    case 16: return NAME<16>(p, __VA_ARGS__);       \
    case 32: return NAME<32>(p, __VA_ARGS__);       \
    case 64: return NAME<64>(p, __VA_ARGS__);       \
    default: return NAME<0>(p, __VA_ARGS__);        \
  }

using ForwardFn = void (*)(const Planes&, int64_t, int64_t, float, Moments*, float*);
using BackwardFn = void (*)(const Planes&, int64_t, int64_t, const Moments*, const float*, float*, float*, float*);

#define C2R_VARIANT(SUFFIX, ATTRIBUTE)                                                                                        \
  ATTRIBUTE void forward_##SUFFIX(const Planes& p, int64_t from, int64_t to, float eps, Moments* moments, float* out) {       \
    C2R_BY_WIDTH(forward_planes, from, to, eps, moments, out)                                                                 \
  }                                                                                                                           \
  ATTRIBUTE void backward_##SUFFIX(const Planes& p, int64_t from, int64_t to, const Moments* moments, const float* gradient,  \
                                   float* out, float* weight_gradient, float* bias_gradient) {                                \
    C2R_BY_WIDTH(backward_planes, from, to, moments, gradient, out, weight_gradient, bias_gradient)                           \
  }

C2R_VARIANT(any, )
#if defined(__x86_64__)
C2R_VARIANT(avx2, C2R_AVX2)
C2R_VARIANT(avx512, C2R_AVX512)
#endif

struct Kernels {
  ForwardFn forward;
  BackwardFn backward;
};

Kernels kernels() {
  switch (level()) {
#if defined(__x86_64__)
    case Level::avx512: return {forward_avx512, backward_avx512};
    case Level::avx2: return {forward_avx2, backward_avx2};
#endif
    default: return {forward_any, backward_any};
  }
}

// Room for one image and GROUP planes.
struct Room {
  std::vector<float> padded, planes, padded_gradients;
  Room(const FirstBlockPass& b, int channels)
      : padded(channels * (b.height + 2) * (b.width + 2)),
        planes(2 * GROUP * b.height * b.width),
        padded_gradients(GROUP * (b.height + 2) * (b.width + 2)) {}
};

template <typename V, int W, int C>
C2R_INLINE void forward_images(const FirstBlockPass& b, int64_t from, int64_t to, Room& room) {
  const int64_t plane = b.height * W, pooled = (b.height / 2) * (W / 2), padded = (b.height + 2) * (W + 2);
  for (int64_t i = from; i < to; ++i) {
    for (int c = 0; c < C; ++c) pad(b.x + (i * C + c) * plane, b.height, W, room.padded.data() + c * padded);
    for (int64_t f = 0; f < b.filters; f += GROUP) {
      convolve<V, W>(room.padded.data(), C, b.height, b.weight + f * C * 9, b.bias + f, room.planes.data());
      for (int g = 0; g < GROUP; ++g)
        b.moments[i * b.filters + f + g] = forward<W>(room.planes.data() + g * plane, b.height, W, b.norm_weight[f + g],
                                                      b.norm_bias[f + g], b.eps, b.out + (i * b.filters + f + g) * pooled);
    }
  }
}

template <typename V, int W, int C>
C2R_INLINE void backward_images(const FirstBlockPass& b, int64_t from, int64_t to, Room& room) {
  const int64_t plane = b.height * W, pooled = (b.height / 2) * (W / 2), padded = (b.height + 2) * (W + 2);
  float* gradients = room.planes.data() + GROUP * plane;
  for (int64_t i = from; i < to; ++i) {
    for (int c = 0; c < C; ++c) pad(b.x + (i * C + c) * plane, b.height, W, room.padded.data() + c * padded);
    for (int64_t f = 0; f < b.filters; f += GROUP) {
      convolve<V, W>(room.padded.data(), C, b.height, b.weight + f * C * 9, b.bias + f, room.planes.data());
      for (int g = 0; g < GROUP; ++g) {
        const int64_t at = i * b.filters + f + g;
        backward<W>(room.planes.data() + g * plane, b.gradient + at * pooled, b.height, W, b.norm_weight[f + g], b.norm_bias[f + g],
                    b.moments[at], gradients + g * plane, b.norm_gradients + at, b.norm_gradients + b.n * b.filters + at);
        if (b.weight_gradient)
          weight_gradient<V, W>(room.padded.data(), C, b.height, gradients + g * plane, b.weight_gradient + at * C * 9);
        if (b.image_gradient) pad(gradients + g * plane, b.height, W, room.padded_gradients.data() + g * padded);
      }
      if (b.image_gradient)
        image_gradient<V, W, C>(room.padded_gradients.data(), b.height, b.weight + f * C * 9, b.image_gradient + i * C * plane);
    }
  }
}

#define C2R_PASS(NAME, SUFFIX, ATTRIBUTE, WIDE)                                                        \
  ATTRIBUTE void NAME##_##SUFFIX(const FirstBlockPass& b, int channels, int64_t from, int64_t to, Room& room) { \
    typedef VectorOf<8>::type V8;                                                                      \
    typedef VectorOf<WIDE>::type VW;                                                                   \
    if (channels == 1)                                                                                 \
      b.width == 8 ? NAME<V8, 8, 1>(b, from, to, room) : NAME<VW, 32, 1>(b, from, to, room);           \
    else if (b.width == 32)                                                                            \
      NAME<VW, 32, 3>(b, from, to, room);                                                              \
    else                                                                                               \
      b.width == 64 ? NAME<VW, 64, 3>(b, from, to, room) : NAME<VW, 128, 3>(b, from, to, room);        \
  }

#define C2R_PASSES(SUFFIX, ATTRIBUTE, WIDE)         \
  C2R_PASS(forward_images, SUFFIX, ATTRIBUTE, WIDE) \
  C2R_PASS(backward_images, SUFFIX, ATTRIBUTE, WIDE)

C2R_PASSES(any, , 8)
#if defined(__x86_64__)
C2R_PASSES(avx2, C2R_AVX2, 8)
C2R_PASSES(avx512, C2R_AVX512, 16)
#endif

using Pass = void (*)(const FirstBlockPass&, int, int64_t, int64_t, Room&);

Pass forward_pass() {
  switch (level()) {
#if defined(__x86_64__)
    case Level::avx512: return forward_images_avx512;
    case Level::avx2: return forward_images_avx2;
#endif
    default: return forward_images_any;
  }
}

Pass backward_pass() {
  switch (level()) {
#if defined(__x86_64__)
    case Level::avx512: return backward_images_avx512;
    case Level::avx2: return backward_images_avx2;
#endif
    default: return backward_images_any;
  }
}

}  // namespace

void norm_relu_pool_forward(const Planes& p, int64_t from, int64_t to, float eps, Moments* moments, float* out) {
  kernels().forward(p, from, to, eps, moments, out);
}

void norm_relu_pool_backward(const Planes& p, int64_t from, int64_t to, const Moments* moments, const float* gradient, float* out,
                             float* weight_gradient, float* bias_gradient) {
  kernels().backward(p, from, to, moments, gradient, out, weight_gradient, bias_gradient);
}

// The field's grey and coloured images; a tile is at most four rows high.
bool has_first_block(int64_t channels, int64_t filters, int64_t height, int64_t width) {
  const bool grey = channels == 1 && (width == 8 || width == 32);
  const bool coloured = channels == 3 && (width == 32 || width == 64 || width == 128);
  return (grey || coloured) && height % 4 == 0 && filters % GROUP == 0;
}

void first_block_forward(const FirstBlockPass& b, int channels, int64_t from, int64_t to) {
  Room room(b, channels);
  forward_pass()(b, channels, from, to, room);
}

void first_block_backward(const FirstBlockPass& b, int channels, int64_t from, int64_t to) {
  Room room(b, channels);
  backward_pass()(b, channels, from, to, room);
}

}  // namespace c2r

extern "C" int32_t c2r_vectors() noexcept { return static_cast<int32_t>(c2r::level()); }
