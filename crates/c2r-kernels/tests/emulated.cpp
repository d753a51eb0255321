// Runs blocks.cu on a CPU: the threads of a block are threads that meet in __syncthreads, block after block. Compiled and
// loaded by tests/cuda.rs, with -DC2R_HEIGHT, -DC2R_WIDTH, -DC2R_CHANNELS and -DC2R_WARPS.

#include <cmath>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#define C2R_EMULATED
#define __global__
#define __device__
#define __launch_bounds__(...)

struct float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct Index {
  unsigned x;
};

static thread_local Index threadIdx, blockIdx;
// Of one block at a time; NaN at first, so that what was never written shows.
alignas(16) static float shared[32768];

class Barrier {
 public:
  void meet(int n) {
    std::unique_lock<std::mutex> lock(mutex_);
    const long round = round_;
    if (++waiting_ == n) {
      waiting_ = 0;
      ++round_;
      all_.notify_all();
    } else {
      all_.wait(lock, [&] { return round_ != round; });
    }
  }

 private:
  int waiting_ = 0;
  long round_ = 0;
  std::mutex mutex_;
  std::condition_variable all_;
};

static Barrier barrier;
static void __syncthreads() { barrier.meet(32 * C2R_WARPS); }

#include "../native/blocks.cu"

template <typename Kernel>
static void launch(unsigned blocks, Kernel kernel) {
  for (unsigned block = 0; block < blocks; ++block) {
    for (float& value : shared) value = NAN;
    std::vector<std::thread> threads;
    for (unsigned thread = 0; thread < 32 * C2R_WARPS; ++thread)
      threads.emplace_back([=] {
        threadIdx = {thread};
        blockIdx = {block};
        kernel();
      });
    for (std::thread& thread : threads) thread.join();
  }
}

#if C2R_CHANNELS == 0

extern "C" void emulate_forward(int images, const float* x, const float* weight, const float* bias, float eps, int channels,
                                float* moments, float* out) {
  const int groups = (channels + 31) / 32;
  launch(images * groups, [=] { norm_relu_pool_forward(x, weight, bias, eps, channels, groups, moments, out); });
}

extern "C" void emulate_backward(int images, const float* x, const float* weight, const float* bias, const float* moments,
                                 const float* gradient, int channels, float* x_gradient, float* weight_gradient, float* bias_gradient) {
  const int groups = (channels + 31) / 32;
  launch(images * groups, [=] {
    norm_relu_pool_backward(x, weight, bias, moments, gradient, channels, groups, x_gradient, weight_gradient, bias_gradient);
  });
}

#else

static_assert(BACKWARD_FLOATS <= sizeof(shared) / sizeof(float), "the array is large enough");

extern "C" void emulate_forward(int images, const float* x, const float* weight, const float* norm_weight, const float* norm_bias,
                                float eps, int filters, int parts, float* moments, float* out) {
  launch(images * parts,
         [=] { first_block_forward(x, weight, norm_weight, norm_bias, eps, filters, parts, moments, out); });
}

extern "C" void emulate_backward(int images, const float* x, const float* weight, const float* norm_weight, const float* norm_bias,
                                 const float* moments, const float* gradient, int filters, float* x_gradient, float* weight_gradient,
                                 float* norm_weight_gradient, float* norm_bias_gradient) {
  launch(images, [=] {
    first_block_backward(x, weight, norm_weight, norm_bias, moments, gradient, filters, x_gradient, weight_gradient,
                         norm_weight_gradient, norm_bias_gradient);
  });
}

#endif
