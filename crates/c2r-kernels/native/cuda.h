// norm_relu_pool.cu on a GPU: compiled when first used for a size, and compared with libtorch's operators before it is
// trusted. Built without CUDA; the driver and NVRTC are found when the program runs.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>

namespace c2r {
namespace cuda {

// Whether the kernels run for x [N, C, H, W] on its device. The first question for a device and a size compiles and
// compares; the answer stays.
bool ready(const at::Tensor& x);

// All are contiguous float tensors on one device, with the shapes of norm_relu_pool.cu; sums is [2, N, C], the gradients of weight
// and bias through each plane.
void forward(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, double eps, at::Tensor& moments, at::Tensor& out);
void backward(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, const at::Tensor& moments,
              const at::Tensor& gradient, at::Tensor& x_gradient, at::Tensor& sums);

// What became of the kernels on each device and size, a line for each; empty before the first question.
std::string state();

// PTX of the kernels for images of this size and an architecture such as compute_80, by the NVRTC at `nvrtc` (a path, or a
// name that the loader finds; empty: the one of libtorch). Throws what the compiler says.
std::string ptx(const std::string& nvrtc, int64_t height, int64_t width, const std::string& architecture);

}  // namespace cuda
}  // namespace c2r
