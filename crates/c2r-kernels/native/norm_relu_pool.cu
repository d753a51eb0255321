// Instance normalization, ReLU and 2x2 average pooling, and the gradient: one warp for each plane, which it reads once and
// keeps in registers. Compiled by NVRTC when first used, for one height and width (both even); `emulated.cpp` runs the same
// source on a CPU. Sums have a fixed order.

#define WINDOWS_WIDE (C2R_WIDTH / 2)
#define WINDOWS (C2R_HEIGHT / 2 * WINDOWS_WIDE)
// Windows of a lane: four values each.
#define PER_LANE ((WINDOWS + 31) / 32)
// More than these many do not fit into registers; they are read again from the cache.
#define KEEP (PER_LANE <= 8)

#ifndef C2R_EMULATED
__device__ static float warp_sum(float value) {
  for (int distance = 16; distance > 0; distance /= 2) value += __shfl_xor_sync(0xffffffffu, value, distance);
  return value;
}
#endif

struct Window {
  float2 above, below;
};

// Window k of this lane; beyond the last one, nothing.
__device__ static bool has_window(int lane, int k) { return lane + 32 * k < WINDOWS; }

__device__ static int corner(int lane, int k) {
  const int window = lane + 32 * k;
  return window / WINDOWS_WIDE * 2 * C2R_WIDTH + window % WINDOWS_WIDE * 2;
}

__device__ static Window load(const float* plane, int lane, int k) {
  const float* at = plane + corner(lane, k);
  return {*reinterpret_cast<const float2*>(at), *reinterpret_cast<const float2*>(at + C2R_WIDTH)};
}

// NaN stays NaN, as in libtorch's relu.
__device__ static float relu(float v) { return v < 0 ? 0.0f : v; }
__device__ static float square(float v) { return v * v; }

#if KEEP
#define C2R_EACH_WINDOW _Pragma("unroll") for (int k = 0; k < PER_LANE; ++k) if (has_window(lane, k))
#define C2R_LOAD_ALL(plane) \
  Window kept[PER_LANE];    \
  C2R_EACH_WINDOW kept[k] = load(plane, lane, k);
#define C2R_WINDOW(plane, k) kept[k]
#else
#define C2R_EACH_WINDOW for (int k = 0; k < PER_LANE; ++k) if (has_window(lane, k))
#define C2R_LOAD_ALL(plane)
#define C2R_WINDOW(plane, k) load(plane, lane, k)
#endif

// * x: [planes, height, width]; weight, bias: [channels].
// * moments: [planes, 2], mean and inverse deviation; out: [planes, height/2, width/2].
extern "C" __global__ void norm_relu_pool_forward(const float* x, const float* weight, const float* bias, float eps, int channels,
                                                  long long planes, float* moments, float* out) {
  const int lane = threadIdx.x % 32;
  const long long plane = static_cast<long long>(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32;
  if (plane >= planes) return;
  const float* in = x + plane * (C2R_HEIGHT * C2R_WIDTH);
  C2R_LOAD_ALL(in)
  float sum = 0;
  C2R_EACH_WINDOW {
    const Window w = C2R_WINDOW(in, k);
    sum += w.above.x + w.above.y + (w.below.x + w.below.y);
  }
  const float mean = warp_sum(sum) / (C2R_HEIGHT * C2R_WIDTH);
  float apart = 0;
  C2R_EACH_WINDOW {
    const Window w = C2R_WINDOW(in, k);
    apart += square(w.above.x - mean) + square(w.above.y - mean) + (square(w.below.x - mean) + square(w.below.y - mean));
  }
  const float inverse = 1.0f / sqrtf(warp_sum(apart) / (C2R_HEIGHT * C2R_WIDTH) + eps);
  const int channel = static_cast<int>(plane % channels);
  const float scale = weight[channel] * inverse, shift = bias[channel] - mean * scale;
  float* to = out + plane * WINDOWS;
  C2R_EACH_WINDOW {
    const Window w = C2R_WINDOW(in, k);
    const float above = relu(w.above.x * scale + shift) + relu(w.above.y * scale + shift);
    const float below = relu(w.below.x * scale + shift) + relu(w.below.y * scale + shift);
    to[lane + 32 * k] = 0.25f * (above + below);
  }
  if (lane == 0) {
    moments[2 * plane] = mean;
    moments[2 * plane + 1] = inverse;
  }
}

// * gradient: of out. x_gradient: [planes, height, width].
// * weight_gradient, bias_gradient: through each plane, [planes].
extern "C" __global__ void norm_relu_pool_backward(const float* x, const float* weight, const float* bias, const float* moments,
                                                   const float* gradient, int channels, long long planes, float* x_gradient,
                                                   float* weight_gradient, float* bias_gradient) {
  const int lane = threadIdx.x % 32;
  const long long plane = static_cast<long long>(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32;
  if (plane >= planes) return;
  const float* in = x + plane * (C2R_HEIGHT * C2R_WIDTH);
  const float* from = gradient + plane * WINDOWS;
  const float mean = moments[2 * plane], inverse = moments[2 * plane + 1];
  const int channel = static_cast<int>(plane % channels);
  const float scale = weight[channel] * inverse, shift = bias[channel] - mean * scale;
  C2R_LOAD_ALL(in)
  // A quarter of an output's gradient goes to each of its four values, where ReLU is not flat.
#define C2R_PASSED(value) ((value) * scale + shift <= 0 ? 0.0f : quarter)
  float sum = 0, sum_x = 0;
  C2R_EACH_WINDOW {
    const Window w = C2R_WINDOW(in, k);
    const float quarter = 0.25f * from[lane + 32 * k];
    const float a = C2R_PASSED(w.above.x), b = C2R_PASSED(w.above.y), c = C2R_PASSED(w.below.x), d = C2R_PASSED(w.below.y);
    sum += a + b + (c + d);
    sum_x += a * (w.above.x - mean) + b * (w.above.y - mean) + (c * (w.below.x - mean) + d * (w.below.y - mean));
  }
  const float all = warp_sum(sum), all_x = warp_sum(sum_x) * inverse;
  const float mean_g = all / (C2R_HEIGHT * C2R_WIDTH), mean_gx = all_x / (C2R_HEIGHT * C2R_WIDTH) * inverse;
  float* to = x_gradient + plane * (C2R_HEIGHT * C2R_WIDTH);
#define C2R_GRADIENT(value) (scale * (C2R_PASSED(value) - mean_g - ((value) - mean) * mean_gx))
  C2R_EACH_WINDOW {
    const Window w = C2R_WINDOW(in, k);
    const float quarter = 0.25f * from[lane + 32 * k];
    float2 above, below;
    above.x = C2R_GRADIENT(w.above.x);
    above.y = C2R_GRADIENT(w.above.y);
    below.x = C2R_GRADIENT(w.below.x);
    below.y = C2R_GRADIENT(w.below.y);
    *reinterpret_cast<float2*>(to + corner(lane, k)) = above;
    *reinterpret_cast<float2*>(to + corner(lane, k) + C2R_WIDTH) = below;
  }
  if (lane == 0) {
    weight_gradient[plane] = all_x;
    bias_gradient[plane] = all;
  }
}
