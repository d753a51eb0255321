// Runs norm_relu_pool.cu on a CPU: the 32 lanes of a warp are threads that meet in warp_sum. Compiled and loaded by
// tests/cuda.rs, with -DC2R_HEIGHT and -DC2R_WIDTH.

#include <cmath>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#define C2R_EMULATED
#define __global__
#define __device__

struct float2 {
  float x, y;
};
struct Index {
  unsigned x;
};

static thread_local Index threadIdx, blockIdx;
static const Index blockDim = {64};

// The lanes of one warp: each brings a value and waits for the others.
class Warp {
 public:
  // As the shuffles do it: in each round lane i adds what lane i ^ distance had.
  float sum(int lane, float value) {
    for (int distance = 16; distance > 0; distance /= 2) {
      values_[lane] = value;
      meet();
      value += values_[lane ^ distance];
      meet();
    }
    return value;
  }

 private:
  void meet() {
    std::unique_lock<std::mutex> lock(mutex_);
    const long round = round_;
    if (++waiting_ == 32) {
      waiting_ = 0;
      ++round_;
      all_.notify_all();
    } else {
      all_.wait(lock, [&] { return round_ != round; });
    }
  }

  float values_[32];
  int waiting_ = 0;
  long round_ = 0;
  std::mutex mutex_;
  std::condition_variable all_;
};

static thread_local Warp* warp;
static float warp_sum(float value) { return warp->sum(threadIdx.x % 32, value); }

#include "../native/norm_relu_pool.cu"

// One block of two warps after the other.
template <typename Kernel>
static void launch(long long planes, Kernel kernel) {
  for (unsigned block = 0; block * 2 < planes; ++block) {
    Warp warps[2];
    std::vector<std::thread> threads;
    for (unsigned thread = 0; thread < blockDim.x; ++thread)
      threads.emplace_back([&, thread] {
        threadIdx = {thread};
        blockIdx = {block};
        warp = &warps[thread / 32];
        kernel();
      });
    for (std::thread& thread : threads) thread.join();
  }
}

extern "C" void emulate_forward(const float* x, const float* weight, const float* bias, float eps, int channels, long long planes,
                                float* moments, float* out) {
  launch(planes, [=] { norm_relu_pool_forward(x, weight, bias, eps, channels, planes, moments, out); });
}

extern "C" void emulate_backward(const float* x, const float* weight, const float* bias, const float* moments, const float* gradient,
                                 int channels, long long planes, float* x_gradient, float* weight_gradient, float* bias_gradient) {
  launch(planes, [=] {
    norm_relu_pool_backward(x, weight, bias, moments, gradient, channels, planes, x_gradient, weight_gradient, bias_gradient);
  });
}
