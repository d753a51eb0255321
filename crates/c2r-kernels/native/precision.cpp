// In which floats libtorch computes convolutions and matrix products of float tensors.

#include <ATen/Context.h>
#include <ATen/autocast_mode.h>
#include <c10/util/Exception.h>

// On GPUs, for the whole process. libtorch warns once that these switches have successors; the successors alone leave the
// old ones contradicting them, which later reads of the old ones take for an error.
extern "C" void c2r_allow_tf32(bool convolutions) {
  struct Ignore : c10::WarningHandler {
    void process(const c10::Warning&) override {}
  } ignore;
  c10::WarningUtils::WarningHandlerGuard guard(&ignore);
  at::globalContext().setAllowTF32CuDNN(convolutions);
  at::globalContext().setAllowTF32CuBLAS(false);
}

extern "C" bool c2r_tf32_convolutions() {
  return at::globalContext().float32Precision(at::Float32Backend::CUDA, at::Float32Op::CONV) == at::Float32Precision::TF32;
}

extern "C" bool c2r_tf32_products() {
  return at::globalContext().float32Precision(at::Float32Backend::CUDA, at::Float32Op::MATMUL) == at::Float32Precision::TF32;
}

// For this thread. Without the cache of cast parameters, which would outlive their next update.
extern "C" void c2r_autocast_bf16(bool cuda, bool on) {
  const at::DeviceType device = cuda ? at::kCUDA : at::kCPU;
  at::autocast::set_autocast_cache_enabled(!on);
  at::autocast::set_autocast_dtype(device, at::kBFloat16);
  at::autocast::set_autocast_enabled(device, on);
}

extern "C" bool c2r_autocasts_bf16(bool cuda) {
  const at::DeviceType device = cuda ? at::kCUDA : at::kCPU;
  return at::autocast::is_autocast_enabled(device) && at::autocast::get_autocast_dtype(device) == at::kBFloat16;
}
