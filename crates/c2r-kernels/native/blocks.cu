// The blocks of a ConvNet on a GPU. Compiled by NVRTC when first used, for one height and width (both even); `emulated.cpp`
// runs the same source on a CPU. Sums have a fixed order.
//
// * C2R_CHANNELS == 0: instance normalization, ReLU and 2x2 average pooling of features, channels last, and the gradient.
//   A block of threads for each image and 32 channels: a lane has a channel, a warp some windows, which it reads once and
//   keeps in registers.
// * C2R_CHANNELS > 0: the same with the 3x3 convolution of images of so many channels before it, whose output is never
//   written; the backward pass computes it again. A block of threads for an image: a warp has a row of windows, a lane one of
//   16 filters and half of that row.

#define HIGH (C2R_HEIGHT / 2)
#define WIDE (C2R_WIDTH / 2)
#define PIXELS (C2R_HEIGHT * C2R_WIDTH)

#ifndef C2R_EMULATED
extern __shared__ float shared[];
#endif

// NaN stays NaN, as in libtorch's relu.
__device__ static float relu(float v) { return v < 0 ? 0.0f : v; }
__device__ static float square(float v) { return v * v; }

// What a normalization multiplies with and adds.
struct Affine {
  float scale, shift;
};

// The mean of a quarter of an output's gradient that reaches each of four values, where ReLU is not flat.
__device__ static float passed(float value, Affine a, float quarter) { return value * a.scale + a.shift <= 0 ? 0.0f : quarter; }

__device__ static float pooled(const float (&v)[4], Affine a) {
  return 0.25f * (relu(v[0] * a.scale + a.shift) + relu(v[1] * a.scale + a.shift) +
                  (relu(v[2] * a.scale + a.shift) + relu(v[3] * a.scale + a.shift)));
}

#if C2R_CHANNELS == 0

#define WINDOWS (HIGH * WIDE)
#define PER_WARP ((WINDOWS + C2R_WARPS - 1) / C2R_WARPS)
// More than these many do not fit into registers; they are read again.
#define KEEP (PER_WARP <= 16)

#define EACH_WINDOW for (int k = 0; k < PER_WARP; ++k) if (warp + C2R_WARPS * k < WINDOWS)
#if KEEP
#define EACH _Pragma("unroll") EACH_WINDOW
#define LOAD_ALL         \
  float kept[PER_WARP][4]; \
  EACH load(kept[k], in, channels, warp + C2R_WARPS * k);
#define WINDOW(k) const float(&v)[4] = kept[k];
#else
// Loads of several windows are on their way at once.
#define EACH _Pragma("unroll 4") EACH_WINDOW
#define LOAD_ALL
#define WINDOW(k) \
  float v[4];     \
  load(v, in, channels, warp + C2R_WARPS * k);
#endif

// The first of a window's four pixels.
__device__ static int corner(int window) { return window / WIDE * 2 * C2R_WIDTH + window % WIDE * 2; }

__device__ static void load(float (&v)[4], const float* in, int channels, int window) {
  const float* at = in + static_cast<long long>(corner(window)) * channels;
  v[0] = at[0];
  v[1] = at[channels];
  v[2] = at[C2R_WIDTH * channels];
  v[3] = at[(C2R_WIDTH + 1) * channels];
}

// What a thread works on.
struct Place {
  int lane, warp, channel;
  bool writes;
  long long image;
};

// Lanes without a channel go along with the last one and write nothing.
__device__ static Place place(int channels, int groups) {
  const int lane = threadIdx.x % 32, own = static_cast<int>(blockIdx.x % groups) * 32 + lane;
  const bool writes = own < channels;
  return {lane, static_cast<int>(threadIdx.x / 32), writes ? own : channels - 1, writes, blockIdx.x / groups};
}

// The sum of this lane's values over all warps.
__device__ static float over_warps(float value, int warp, int lane) {
  shared[32 * warp + lane] = value;
  __syncthreads();
  float sum = 0;
  for (int w = 0; w < C2R_WARPS; ++w) sum += shared[32 * w + lane];
  __syncthreads();
  return sum;
}

// * x: [images, height, width, channels]; weight, bias: [channels]; groups: of 32 channels.
// * moments: [images, channels, 2], mean and inverse deviation; out: [images, height/2, width/2, channels].
extern "C" __global__ void __launch_bounds__(32 * C2R_WARPS)
    norm_relu_pool_forward(const float* x, const float* weight, const float* bias, float eps, int channels, int groups, float* moments,
                           float* out) {
  const auto [lane, warp, channel, writes, image] = place(channels, groups);
  const float* in = x + image * PIXELS * channels + channel;
  LOAD_ALL
#if KEEP
  float sum = 0;
  EACH {
    WINDOW(k)
    sum += v[0] + v[1] + (v[2] + v[3]);
  }
  const float mean = over_warps(sum, warp, lane) / PIXELS;
  float apart = 0;
  EACH {
    WINDOW(k)
    apart += square(v[0] - mean) + square(v[1] - mean) + (square(v[2] - mean) + square(v[3] - mean));
  }
#else
  // Both in one pass: a window joins those before it (Chan, Golub and LeVeque 1983), and then a warp the others.
  float n = 0, own_mean = 0, apart = 0;
  EACH {
    WINDOW(k)
    const float middle = 0.25f * (v[0] + v[1] + (v[2] + v[3])), step = middle - own_mean, share = 1.0f / (n + 1);
    apart += square(v[0] - middle) + square(v[1] - middle) + (square(v[2] - middle) + square(v[3] - middle));
    apart += 4 * n * share * square(step);
    own_mean += share * step;
    n += 1;
  }
  const float mean = over_warps(n * own_mean, warp, lane) / WINDOWS;
  apart += 4 * n * square(own_mean - mean);
#endif
  const float inverse = 1.0f / sqrtf(over_warps(apart, warp, lane) / PIXELS + eps);
  if (!writes) return;
  const float scale = weight[channel] * inverse;
  const Affine a = {scale, bias[channel] - mean * scale};
  float* to = out + image * WINDOWS * channels + channel;
  EACH {
    WINDOW(k)
    to[static_cast<long long>(warp + C2R_WARPS * k) * channels] = pooled(v, a);
  }
  if (warp == 0) {
    float* at = moments + 2 * (image * channels + channel);
    at[0] = mean;
    at[1] = inverse;
  }
}

// * gradient: of out. x_gradient: [images, height, width, channels].
// * weight_gradient, bias_gradient: through each image, [images, channels].
extern "C" __global__ void __launch_bounds__(32 * C2R_WARPS)
    norm_relu_pool_backward(const float* x, const float* weight, const float* bias, const float* moments, const float* gradient,
                            int channels, int groups, float* x_gradient, float* weight_gradient, float* bias_gradient) {
  const auto [lane, warp, channel, writes, image] = place(channels, groups);
  const float* in = x + image * PIXELS * channels + channel;
  const float* from = gradient + image * WINDOWS * channels + channel;
  const float* at = moments + 2 * (image * channels + channel);
  const float mean = at[0], inverse = at[1], scale = weight[channel] * inverse;
  const Affine a = {scale, bias[channel] - mean * scale};
  LOAD_ALL
  float sum = 0, sum_x = 0;
  EACH {
    WINDOW(k)
    const float quarter = 0.25f * from[static_cast<long long>(warp + C2R_WARPS * k) * channels];
    for (int i = 0; i < 4; ++i) {
      const float p = passed(v[i], a, quarter);
      sum += p;
      sum_x += p * (v[i] - mean);
    }
  }
  const float all = over_warps(sum, warp, lane), all_x = over_warps(sum_x, warp, lane) * inverse;
  if (!writes) return;
  const float mean_g = all / PIXELS, mean_gx = all_x / PIXELS * inverse;
  float* to = x_gradient + image * PIXELS * channels + channel;
  EACH {
    WINDOW(k)
    const int window = warp + C2R_WARPS * k;
    const float quarter = 0.25f * from[static_cast<long long>(window) * channels];
    float* first = to + static_cast<long long>(corner(window)) * channels;
    for (int i = 0; i < 4; ++i)
      first[(i / 2 * C2R_WIDTH + i % 2) * channels] = scale * (passed(v[i], a, quarter) - mean_g - (v[i] - mean) * mean_gx);
  }
  if (warp == 0) {
    weight_gradient[image * channels + channel] = all_x;
    bias_gradient[image * channels + channel] = all;
  }
}

#else

// A row of windows for each.
#define WARPS HIGH
#define THREADS (32 * WARPS)
// Filters at once, and windows of a lane.
#define FILTERS 16
#define OWN (WIDE / 2)
#define TAPS (C2R_CHANNELS * 9)

// Shared memory, in floats: the image with a border of zeros; weights by filter, and again in rows of whole float4; a value
// for each thread; the gradients of the convolution's output, with a border of zeros.
#define PITCH (C2R_WIDTH + 4)
#define PLANE ((C2R_HEIGHT + 2) * PITCH)
#define WEIGHTS_AT (C2R_CHANNELS * PLANE)
#define SUMS_AT (WEIGHTS_AT + FILTERS * TAPS)
#define FORWARD_FLOATS (SUMS_AT + THREADS)
#define ROWS_AT FORWARD_FLOATS
#define ROW ((TAPS + 3) / 4 * 4)
#define GRADIENTS_AT (ROWS_AT + FILTERS * ROW)
#define GRADIENT_PITCH (C2R_WIDTH + 2)
// Odd, so that 16 filters and two halves of a row are in 32 banks.
#define GRADIENT_PLANE (((C2R_HEIGHT + 2) * GRADIENT_PITCH) | 1)
#define BACKWARD_FLOATS (GRADIENTS_AT + FILTERS * GRADIENT_PLANE)

// x: [channels, height, width].
__device__ static void load_image(const float* x) {
  for (int at = threadIdx.x; at < C2R_CHANNELS * PLANE; at += THREADS) {
    const int row = at % PLANE / PITCH - 1, column = at % PITCH - 1;
    const bool inside = row >= 0 && row < C2R_HEIGHT && column >= 0 && column < C2R_WIDTH;
    shared[at] = inside ? x[(at / PLANE * C2R_HEIGHT + row) * C2R_WIDTH + column] : 0.0f;
  }
}

// Weights of the filters from `first` on; zeros beyond the last.
__device__ static void load_weights(const float* weight, int first, int filters) {
  for (int at = threadIdx.x; at < FILTERS * TAPS; at += THREADS) {
    const float value = first + at / TAPS < filters ? weight[first * TAPS + at] : 0.0f;
    shared[WEIGHTS_AT + at] = value;
  }
}

// The sum of this filter's values over all warps and both halves.
__device__ static float over_image(float value) {
  shared[SUMS_AT + threadIdx.x] = value;
  __syncthreads();
  float sum = 0;
  for (int at = threadIdx.x % FILTERS; at < THREADS; at += FILTERS) sum += shared[SUMS_AT + at];
  __syncthreads();
  return sum;
}

// Where the pixels around this lane's first window begin.
__device__ static const float* around(int channel, int warp, int half) {
  return shared + channel * PLANE + 2 * warp * PITCH + 2 * OWN * half;
}

// Goes over a lane's windows with the 4x4 pixels around each: v[row][column].
#define SLIDE(channel, ...)                                                                  \
  {                                                                                          \
    const float* top = around(channel, warp, half);                                          \
    float v[4][4];                                                                           \
    _Pragma("unroll") for (int i = 0; i < 4; ++i) {                                          \
      const float2 pair = *reinterpret_cast<const float2*>(top + i * PITCH);                 \
      v[i][2] = pair.x;                                                                      \
      v[i][3] = pair.y;                                                                      \
    }                                                                                        \
    _Pragma("unroll") for (int w = 0; w < OWN; ++w) {                                        \
      _Pragma("unroll") for (int i = 0; i < 4; ++i) {                                        \
        const float2 pair = *reinterpret_cast<const float2*>(top + i * PITCH + 2 * w + 2);   \
        v[i][0] = v[i][2];                                                                   \
        v[i][1] = v[i][3];                                                                   \
        v[i][2] = pair.x;                                                                    \
        v[i][3] = pair.y;                                                                    \
      }                                                                                      \
      __VA_ARGS__                                                                            \
    }                                                                                        \
  }

// The convolution at this lane's windows.
__device__ static void convolve(float (&y)[OWN][4], int warp, int half, int filter) {
  _Pragma("unroll") for (int w = 0; w < OWN; ++w) for (int i = 0; i < 4; ++i) y[w][i] = 0;
  _Pragma("unroll 1") for (int c = 0; c < C2R_CHANNELS; ++c) {
    float k[9];
    _Pragma("unroll") for (int i = 0; i < 9; ++i) k[i] = shared[WEIGHTS_AT + filter * TAPS + c * 9 + i];
    SLIDE(c, _Pragma("unroll") for (int i = 0; i < 9; ++i) _Pragma("unroll") for (int o = 0; o < 4; ++o)
                 y[w][o] += k[i] * v[o / 2 + i / 3][o % 2 + i % 3];)
  }
}

// * x: [images, channels, height, width]; weight: [filters, channels, 3, 3]; norm_weight, norm_bias: [filters].
// * parts: blocks of threads for each image, which share its filters.
// * moments: [images, filters, 2]; out: [images, height/2, width/2, filters].
extern "C" __global__ void __launch_bounds__(THREADS, 2)
    first_block_forward(const float* x, const float* weight, const float* norm_weight, const float* norm_bias, float eps, int filters,
                        int parts, float* moments, float* out) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, half = lane / FILTERS, filter = lane % FILTERS;
  const long long image = blockIdx.x / parts;
  load_image(x + image * C2R_CHANNELS * PIXELS);
  for (int first = static_cast<int>(blockIdx.x % parts) * FILTERS; first < filters; first += parts * FILTERS) {
    load_weights(weight, first, filters);
    __syncthreads();
    float y[OWN][4];
    convolve(y, warp, half, filter);
    float sum = 0;
    _Pragma("unroll") for (int w = 0; w < OWN; ++w) sum += y[w][0] + y[w][1] + (y[w][2] + y[w][3]);
    const float mean = over_image(sum) / PIXELS;
    float apart = 0;
    _Pragma("unroll") for (int w = 0; w < OWN; ++w) apart +=
        square(y[w][0] - mean) + square(y[w][1] - mean) + (square(y[w][2] - mean) + square(y[w][3] - mean));
    const float inverse = 1.0f / sqrtf(over_image(apart) / PIXELS + eps);
    const int own = first + filter;
    if (own >= filters) continue;
    const float scale = norm_weight[own] * inverse;
    const Affine a = {scale, norm_bias[own] - mean * scale};
    float* to = out + ((image * HIGH + warp) * WIDE + OWN * half) * filters + own;
    _Pragma("unroll") for (int w = 0; w < OWN; ++w) to[w * filters] = pooled(y[w], a);
    if (warp == 0 && half == 0) {
      float* at = moments + 2 * (image * filters + own);
      at[0] = mean;
      at[1] = inverse;
    }
  }
}

// * gradient: of out. x_gradient: [images, channels, height, width], or null.
// * weight_gradient: through each image, [images, filters, channels, 3, 3], or null.
// * norm_weight_gradient, norm_bias_gradient: through each image, [images, filters].
extern "C" __global__ void __launch_bounds__(THREADS)
    first_block_backward(const float* x, const float* weight, const float* norm_weight, const float* norm_bias, const float* moments,
                         const float* gradient, int filters, float* x_gradient, float* weight_gradient, float* norm_weight_gradient,
                         float* norm_bias_gradient) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, half = lane / FILTERS, filter = lane % FILTERS;
  const long long image = blockIdx.x;
  load_image(x + image * C2R_CHANNELS * PIXELS);
  for (int at = threadIdx.x; at < FILTERS * GRADIENT_PLANE; at += THREADS) shared[GRADIENTS_AT + at] = 0;
  // The gradient of four rows of a column, from every other filter.
  const int rows = 4 * (warp % (WARPS / 2)), parity = warp / (WARPS / 2);
  float of_x[C2R_CHANNELS][4];
  _Pragma("unroll") for (int c = 0; c < C2R_CHANNELS; ++c) for (int r = 0; r < 4; ++r) of_x[c][r] = 0;
  _Pragma("unroll 1") for (int first = 0; first < filters; first += FILTERS) {
    load_weights(weight, first, filters);
    __syncthreads();
    if (x_gradient != nullptr)
      for (int at = threadIdx.x; at < FILTERS * TAPS; at += THREADS)
        shared[ROWS_AT + at / TAPS * ROW + at % TAPS] = shared[WEIGHTS_AT + at];
    float y[OWN][4], quarter[OWN];
    convolve(y, warp, half, filter);
    const bool exists = first + filter < filters;
    const int own = exists ? first + filter : filters - 1;
    const float mean = moments[2 * (image * filters + own)], inverse = moments[2 * (image * filters + own) + 1];
    const float scale = norm_weight[own] * inverse;
    const Affine a = {scale, norm_bias[own] - mean * scale};
    const float* from = gradient + ((image * HIGH + warp) * WIDE + OWN * half) * filters + own;
    float sum = 0, sum_x = 0;
    _Pragma("unroll") for (int w = 0; w < OWN; ++w) {
      quarter[w] = 0.25f * from[w * filters];
      _Pragma("unroll") for (int i = 0; i < 4; ++i) {
        const float p = passed(y[w][i], a, quarter[w]);
        sum += p;
        sum_x += p * (y[w][i] - mean);
      }
    }
    const float all = over_image(sum), all_x = over_image(sum_x) * inverse;
    if (warp == 0 && half == 0 && exists) {
      norm_weight_gradient[image * filters + own] = all_x;
      norm_bias_gradient[image * filters + own] = all;
    }
    // From here on, y is its own gradient.
    const float mean_g = all / PIXELS, mean_gx = all_x / PIXELS * inverse;
    _Pragma("unroll") for (int w = 0; w < OWN; ++w) _Pragma("unroll") for (int i = 0; i < 4; ++i) y[w][i] =
        exists ? scale * (passed(y[w][i], a, quarter[w]) - mean_g - (y[w][i] - mean) * mean_gx) : 0.0f;
    if (weight_gradient != nullptr) {
      _Pragma("unroll 1") for (int c = 0; c < C2R_CHANNELS; ++c) {
        float k[9];
        _Pragma("unroll") for (int i = 0; i < 9; ++i) k[i] = 0;
        SLIDE(c, _Pragma("unroll") for (int i = 0; i < 9; ++i) _Pragma("unroll") for (int o = 0; o < 4; ++o)
                     k[i] += y[w][o] * v[o / 2 + i / 3][o % 2 + i % 3];)
        _Pragma("unroll") for (int i = 0; i < 9; ++i) {
          const float total = over_image(k[i]);
          if (warp == 0 && half == 0 && exists) weight_gradient[(image * filters + own) * TAPS + c * 9 + i] = total;
        }
      }
    }
    if (x_gradient != nullptr) {
      float* to = shared + GRADIENTS_AT + filter * GRADIENT_PLANE + (2 * warp + 1) * GRADIENT_PITCH + 2 * OWN * half + 1;
      _Pragma("unroll") for (int w = 0; w < OWN; ++w) _Pragma("unroll") for (int i = 0; i < 4; ++i)
          to[i / 2 * GRADIENT_PITCH + 2 * w + i % 2] = y[w][i];
      __syncthreads();
      if (lane < C2R_WIDTH) {
        _Pragma("unroll 1") for (int f = parity; f < FILTERS; f += 2) {
          const float* above = shared + GRADIENTS_AT + f * GRADIENT_PLANE + rows * GRADIENT_PITCH + lane;
          float g[6][3];
          _Pragma("unroll") for (int i = 0; i < 6; ++i) _Pragma("unroll") for (int j = 0; j < 3; ++j) g[i][j] =
              above[i * GRADIENT_PITCH + j];
          float k[ROW];
          _Pragma("unroll") for (int i = 0; i < ROW / 4; ++i) {
            const float4 four = reinterpret_cast<const float4*>(shared + ROWS_AT + f * ROW)[i];
            k[4 * i] = four.x;
            k[4 * i + 1] = four.y;
            k[4 * i + 2] = four.z;
            k[4 * i + 3] = four.w;
          }
          _Pragma("unroll") for (int c = 0; c < C2R_CHANNELS; ++c) _Pragma("unroll") for (int r = 0; r < 4; ++r)
              _Pragma("unroll") for (int i = 0; i < 9; ++i) of_x[c][r] += k[c * 9 + i] * g[r + 2 - i / 3][2 - i % 3];
        }
      }
    }
    __syncthreads();
  }
  if (x_gradient == nullptr) return;
  // Both parities together.
  float* half_sums = shared + GRADIENTS_AT + (threadIdx.x % (THREADS / 2)) * (C2R_CHANNELS * 4 + 1);
  if (parity == 1)
    _Pragma("unroll") for (int c = 0; c < C2R_CHANNELS; ++c) for (int r = 0; r < 4; ++r) half_sums[4 * c + r] = of_x[c][r];
  __syncthreads();
  if (parity == 1 || lane >= C2R_WIDTH) return;
  float* to = x_gradient + image * C2R_CHANNELS * PIXELS + rows * C2R_WIDTH + lane;
  _Pragma("unroll") for (int c = 0; c < C2R_CHANNELS; ++c) for (int r = 0; r < 4; ++r)
      to[c * PIXELS + r * C2R_WIDTH] = of_x[c][r] + half_sums[4 * c + r];
}

#endif
