// blocks.cu on a GPU: compiled when first used for a size, and compared with libtorch's operators before it is trusted. Built
// without CUDA; the driver and NVRTC are found when the program runs.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <utility>

namespace c2r {
namespace cuda {

// What a kernel is compiled for: features of any number of channels, or, with `channels`, the first block on images.
struct Size {
  int64_t channels, height, width;
};

// Whether the kernels' 32 bits suffice to count blocks of threads, and the values from one row to the next, for outputs of a
// convolution of n images `width` wide.
bool countable(int64_t n, int64_t channels, int64_t width);

// Whether the kernels of this size run on x's device. The first question for a device and a size compiles and compares; the
// answer stays, unless there was no memory: then later questions try again, less and less often.
bool ready(const at::Tensor& x, const Size& size);

// Float tensors on one device with the shapes of blocks.cu: x, gradients and outputs [N, C, H, W] are channels last, the
// others and images contiguous. moments: [N, C, 2]; sums: [2, N, C], the gradients of weight and bias through each image.
void norm_forward(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, double eps, at::Tensor& moments,
                  at::Tensor& out);
void norm_backward(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, const at::Tensor& moments,
                   const at::Tensor& gradient, at::Tensor& x_gradient, at::Tensor& sums);

// The first block: what it reads.
struct First {
  at::Tensor x, weight, norm_weight, norm_bias;
};

void first_forward(const First& inputs, double eps, at::Tensor& moments, at::Tensor& out);
// x_gradient and weight_gradient [N, F, C, 3, 3] are filled where they are defined.
void first_backward(const First& inputs, const at::Tensor& moments, const at::Tensor& gradient, at::Tensor& x_gradient,
                    at::Tensor& weight_gradient, at::Tensor& sums);

// What became of the kernels on each device and size, a line for each; empty before the first question.
std::string state();

struct Code {
  // Both end with a zero byte.
  std::string ptx, log;
};

// The kernels of this size for GPUs of a compute capability (90 for 9.0) and later, by the NVRTC at `nvrtc` (a path, or a name that
// the loader finds; empty: the one of libtorch). With `registers`, the log has the registers and the spills of each kernel. Throws
// what the compiler says.
Code code(const std::string& nvrtc, const Size& size, int capability, bool registers);

// Throws, with the numbers, if the kernels of this size need more shared memory than a GPU has for a block of threads (bytes). Both
// passes must fit, because the second goes on with what the first computed.
void check_shared_memory(const Size& size, int available);

// What the comparison with libtorch's operators asks for, computed on the CPU: how far the nearest value that enters ReLU is from
// zero where a gradient comes from, and the share of the windows from which one comes.
std::pair<double, double> trial_margin(const Size& size);

}  // namespace cuda
}  // namespace c2r
