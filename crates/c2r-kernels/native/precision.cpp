// In which floats libtorch computes convolutions and matrix products of float tensors.

#include <ATen/Context.h>
#include <ATen/autocast_mode.h>
#include <c10/util/Exception.h>

// On GPUs, for the whole process. libtorch warns once that these switches have successors; the successors alone leave the
// old ones contradicting them, which later reads of the old ones take for an error.
extern "C" void c2r_allow_tf32(bool convolutions) noexcept {
  struct Ignore : c10::WarningHandler {
    void process(const c10::Warning&) override {}
  } ignore;
  c10::WarningUtils::WarningHandlerGuard guard(&ignore);
  at::globalContext().setAllowTF32CuDNN(convolutions);
  at::globalContext().setAllowTF32CuBLAS(false);
}

extern "C" bool c2r_tf32_convolutions() noexcept {
  return at::globalContext().float32Precision(at::Float32Backend::CUDA, at::Float32Op::CONV) == at::Float32Precision::TF32;
}

extern "C" bool c2r_tf32_products() noexcept {
  return at::globalContext().float32Precision(at::Float32Backend::CUDA, at::Float32Op::MATMUL) == at::Float32Precision::TF32;
}

// What a thread's autocast does on a kind of device.
struct Autocast {
  int32_t dtype;
  bool on, cache;
};

static at::DeviceType kind(bool cuda) { return cuda ? at::kCUDA : at::kCPU; }

extern "C" Autocast c2r_autocast(bool cuda) noexcept {
  return {static_cast<int32_t>(at::autocast::get_autocast_dtype(kind(cuda))), at::autocast::is_autocast_enabled(kind(cuda)),
          at::autocast::is_autocast_cache_enabled()};
}

extern "C" void c2r_set_autocast(bool cuda, Autocast autocast) noexcept {
  at::autocast::set_autocast_cache_enabled(autocast.cache);
  at::autocast::set_autocast_dtype(kind(cuda), static_cast<at::ScalarType>(autocast.dtype));
  at::autocast::set_autocast_enabled(kind(cuda), autocast.on);
}

extern "C" int32_t c2r_bf16() noexcept { return static_cast<int32_t>(at::kBFloat16); }
