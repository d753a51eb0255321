#include "cuda.h"

#include <ATen/ATen.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/GradMode.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <c10/util/Exception.h>
#include <torch/csrc/autograd/autograd.h>

#include <dlfcn.h>

#include <filesystem>
#include <map>
#include <mutex>
#include <sstream>
#include <tuple>
#include <vector>

namespace c2r {
namespace cuda {
namespace {

const char* const SOURCE =
#include "norm_relu_pool.cu.inc"
    ;

constexpr int WARPS = 8;
// Rounding explains no more than this, relative to the largest value.
constexpr double SAME = 1e-4;

// A function of a library that is loaded by name.
template <typename F>
F* symbol(void* library, const char* name) {
  void* found = dlsym(library, name);
  TORCH_CHECK(found != nullptr, "it has no ", name);
  return reinterpret_cast<F*>(found);
}

void* open(const std::vector<std::string>& names) {
  std::string tried;
  for (const std::string& name : names) {
    if (void* library = dlopen(name.c_str(), RTLD_LAZY | RTLD_GLOBAL)) return library;
    tried += (tried.empty() ? "" : ", ") + name;
  }
  TORCH_CHECK(false, "none of these can be loaded: ", tried);
}

// NVRTC. Its functions return 0 for success.
struct Nvrtc {
  explicit Nvrtc(const std::string& name)
      : library(open(name.empty() ? std::vector<std::string>{"libcaffe2_nvrtc.so", "libnvrtc.so.13", "libnvrtc.so"}
                                  : std::vector<std::string>{name})),
        create(symbol<int(void**, const char*, const char*, int, const char* const*, const char* const*)>(library, "nvrtcCreateProgram")),
        compile(symbol<int(void*, int, const char* const*)>(library, "nvrtcCompileProgram")),
        ptx_size(symbol<int(void*, size_t*)>(library, "nvrtcGetPTXSize")),
        ptx(symbol<int(void*, char*)>(library, "nvrtcGetPTX")),
        log_size(symbol<int(void*, size_t*)>(library, "nvrtcGetProgramLogSize")),
        log(symbol<int(void*, char*)>(library, "nvrtcGetProgramLog")),
        destroy(symbol<int(void**)>(library, "nvrtcDestroyProgram")) {
    load_builtins();
  }

  // NVRTC opens another library by name, which the loader does not find in a package of Python: the one beside it is loaded
  // before.
  void load_builtins() const {
    Dl_info info;
    if (dladdr(reinterpret_cast<void*>(create), &info) == 0 || info.dli_fname == nullptr) return;
    std::error_code none;
    for (const auto& entry : std::filesystem::directory_iterator(std::filesystem::path(info.dli_fname).parent_path(), none)) {
      const std::string name = entry.path().filename().string();
      if (name.rfind("libnvrtc-builtins.so", 0) == 0) dlopen(entry.path().c_str(), RTLD_LAZY | RTLD_GLOBAL);
    }
  }

  void* library;
  int (*create)(void**, const char*, const char*, int, const char* const*, const char* const*);
  int (*compile)(void*, int, const char* const*);
  int (*ptx_size)(void*, size_t*);
  int (*ptx)(void*, char*);
  int (*log_size)(void*, size_t*);
  int (*log)(void*, char*);
  int (*destroy)(void**);
};

// The driver. Its functions return 0 for success.
struct Driver {
  Driver()
      : library(open({"libcuda.so.1", "libcuda.so"})),
        device(symbol<int(int*, int)>(library, "cuDeviceGet")),
        attribute(symbol<int(int*, int, int)>(library, "cuDeviceGetAttribute")),
        load(symbol<int(void**, const void*)>(library, "cuModuleLoadData")),
        function(symbol<int(void**, void*, const char*)>(library, "cuModuleGetFunction")),
        launch(symbol<int(void*, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void*, void**, void**)>(
            library, "cuLaunchKernel")) {}

  void* library;
  int (*device)(int*, int);
  int (*attribute)(int*, int, int);
  int (*load)(void**, const void*);
  int (*function)(void**, void*, const char*);
  int (*launch)(void*, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void*, void**, void**);
};

const Driver& driver() {
  static const Driver loaded;
  return loaded;
}

void check(int status, const char* what) { TORCH_CHECK(status == 0, what, " failed with CUDA status ", status); }

std::string architecture(int index) {
  // CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR.
  constexpr int MAJOR = 75, MINOR = 76;
  int device = 0, major = 0, minor = 0;
  check(driver().device(&device, index), "cuDeviceGet");
  check(driver().attribute(&major, MAJOR, device), "cuDeviceGetAttribute");
  check(driver().attribute(&minor, MINOR, device), "cuDeviceGetAttribute");
  return "compute_" + std::to_string(major) + std::to_string(minor);
}

// The kernels for one device and size; not usable where `reason` says why.
struct Kernels {
  void* forward = nullptr;
  void* backward = nullptr;
  std::string reason;
};

using Key = std::tuple<int, int64_t, int64_t>;

std::recursive_mutex mutex;
std::map<Key, Kernels> compiled;

Key key(const at::Tensor& x) { return {x.get_device(), x.size(2), x.size(3)}; }

Kernels kernels_for(const at::Tensor& x) {
  const std::lock_guard<std::recursive_mutex> lock(mutex);
  return compiled.at(key(x));
}

Kernels compile(const at::Tensor& x) {
  Kernels kernels;
  const std::string code = ptx("", x.size(2), x.size(3), architecture(x.get_device()));
  void* module = nullptr;
  check(driver().load(&module, code.c_str()), "cuModuleLoadData");
  check(driver().function(&kernels.forward, module, "norm_relu_pool_forward"), "cuModuleGetFunction");
  check(driver().function(&kernels.backward, module, "norm_relu_pool_backward"), "cuModuleGetFunction");
  return kernels;
}

void launch(void* function, const at::Tensor& x, void** arguments) {
  const int64_t planes = x.size(0) * x.size(1);
  const c10::impl::VirtualGuardImpl guard(c10::kCUDA);
  void* stream = guard.getStreamNativeHandle(guard.getStream(x.device()));
  check(driver().launch(function, static_cast<unsigned>((planes + WARPS - 1) / WARPS), 1, 1, 32 * WARPS, 1, 1, 0, stream, arguments,
                        nullptr),
        "cuLaunchKernel");
}

void run_forward(const Kernels& kernels, const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, double eps,
                 at::Tensor& moments, at::Tensor& out) {
  const void *in = x.const_data_ptr(), *w = weight.const_data_ptr(), *b = bias.const_data_ptr();
  void *m = moments.mutable_data_ptr(), *to = out.mutable_data_ptr();
  float epsilon = static_cast<float>(eps);
  int channels = static_cast<int>(x.size(1));
  long long planes = x.size(0) * x.size(1);
  void* arguments[] = {&in, &w, &b, &epsilon, &channels, &planes, &m, &to};
  launch(kernels.forward, x, arguments);
}

void run_backward(const Kernels& kernels, const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
                  const at::Tensor& moments, const at::Tensor& gradient, at::Tensor& x_gradient, at::Tensor& sums) {
  const void *in = x.const_data_ptr(), *w = weight.const_data_ptr(), *b = bias.const_data_ptr(), *m = moments.const_data_ptr(),
             *g = gradient.const_data_ptr();
  int channels = static_cast<int>(x.size(1));
  long long planes = x.size(0) * x.size(1);
  void *to = x_gradient.mutable_data_ptr(), *of_weight = sums.mutable_data_ptr(), *of_bias = static_cast<float*>(of_weight) + planes;
  void* arguments[] = {&in, &w, &b, &m, &g, &channels, &planes, &to, &of_weight, &of_bias};
  launch(kernels.backward, x, arguments);
}

// Both passes on noise against libtorch's operators. Throws what is wrong.
void compare(const Kernels& kernels, const at::Tensor& like) {
  const int64_t n = 5, channels = 3, height = like.size(2), width = like.size(3);
  const auto noise = [&](at::IntArrayRef shape, double step) {
    return at::arange(c10::multiply_integers(shape), like.options()).mul(step).frac().sub(0.4).view(shape);
  };
  at::Tensor x = noise({n, channels, height, width}, 0.754877666), weight = noise({channels}, 0.61803399) + 0.7,
             bias = noise({channels}, 0.41421356), gradient = noise({n, channels, height / 2, width / 2}, 0.56984029);
  at::Tensor out = at::empty_like(gradient), moments = at::empty({n * channels, 2}, like.options()), x_gradient = at::empty_like(x),
             sums = at::empty({2, n, channels}, like.options());
  run_forward(kernels, x, weight, bias, 1e-5, moments, out);
  run_backward(kernels, x, weight, bias, moments, gradient, x_gradient, sums);
  c10::AutoGradMode with_gradients(true);
  const torch::autograd::variable_list inputs = {x.requires_grad_(), weight.detach().requires_grad_(), bias.detach().requires_grad_()};
  const at::Tensor y = at::avg_pool2d(at::relu(at::group_norm(inputs[0], channels, inputs[1], inputs[2], 1e-5)), {2, 2}, {2, 2});
  const auto theirs = torch::autograd::grad({y}, inputs, {gradient});
  const std::pair<at::Tensor, at::Tensor> pairs[] = {
      {out, y.detach()}, {x_gradient, theirs[0]}, {sums.select(0, 0).sum(0), theirs[1]}, {sums.select(0, 1).sum(0), theirs[2]}};
  for (const auto& [a, b] : pairs) {
    const double apart = (a - b).abs().max().item<double>(), size = b.abs().max().item<double>();
    TORCH_CHECK(apart <= SAME * size, "its results differ from libtorch's by ", apart, " of ", size);
  }
}

}  // namespace

bool ready(const at::Tensor& x) {
  // Two values are read at once.
  if (x.size(2) % 2 != 0 || x.size(3) % 2 != 0 || x.size(2) * x.size(3) > 128 * 128) return false;
  const std::lock_guard<std::recursive_mutex> lock(mutex);
  const auto known = compiled.find(key(x));
  if (known != compiled.end()) return known->second.reason.empty();
  Kernels kernels;
  try {
    const c10::DeviceGuard device(x.device());
    c10::AutoGradMode no_gradients(false);
    kernels = compile(x);
    compare(kernels, at::empty({0, 0, x.size(2), x.size(3)}, x.options().requires_grad(false)));
  } catch (const c10::Error& error) {
    kernels.reason = error.what_without_backtrace();
  } catch (const std::exception& error) {
    kernels.reason = error.what();
  }
  return compiled.emplace(key(x), kernels).first->second.reason.empty();
}

void forward(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, double eps, at::Tensor& moments, at::Tensor& out) {
  const c10::DeviceGuard device(x.device());
  run_forward(kernels_for(x), x, weight, bias, eps, moments, out);
}

void backward(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, const at::Tensor& moments,
              const at::Tensor& gradient, at::Tensor& x_gradient, at::Tensor& sums) {
  const c10::DeviceGuard device(x.device());
  run_backward(kernels_for(x), x, weight, bias, moments, gradient, x_gradient, sums);
}

std::string state() {
  const std::lock_guard<std::recursive_mutex> lock(mutex);
  std::ostringstream lines;
  for (const auto& [at, kernels] : compiled) {
    const auto& [device, height, width] = at;
    lines << "cuda:" << device << ", " << height << "x" << width << ": "
          << (kernels.reason.empty() ? "fused kernels, compared with libtorch's operators"
                                     : "libtorch's operators, because " + kernels.reason)
          << "\n";
  }
  return lines.str();
}

std::string ptx(const std::string& name, int64_t height, int64_t width, const std::string& architecture) {
  const Nvrtc nvrtc(name);
  const std::string options[] = {"--gpu-architecture=" + architecture, "--std=c++17", "-DC2R_HEIGHT=" + std::to_string(height),
                                 "-DC2R_WIDTH=" + std::to_string(width)};
  const char* texts[] = {options[0].c_str(), options[1].c_str(), options[2].c_str(), options[3].c_str()};
  void* program = nullptr;
  check(nvrtc.create(&program, SOURCE, "norm_relu_pool.cu", 0, nullptr, nullptr), "nvrtcCreateProgram");
  const int status = nvrtc.compile(program, 4, texts);
  size_t size = 0;
  std::string text;
  if (status != 0) {
    nvrtc.log_size(program, &size);
    text.resize(size);
    nvrtc.log(program, text.data());
    nvrtc.destroy(&program);
    TORCH_CHECK(false, "NVRTC does not compile norm_relu_pool.cu: ", text.c_str());
  }
  check(nvrtc.ptx_size(program, &size), "nvrtcGetPTXSize");
  text.resize(size);
  check(nvrtc.ptx(program, text.data()), "nvrtcGetPTX");
  nvrtc.destroy(&program);
  return text;
}

}  // namespace cuda
}  // namespace c2r

// Texts that the caller frees.
extern "C" char* c2r_cuda_state() { return strdup(c2r::cuda::state().c_str()); }

extern "C" char* c2r_cuda_ptx(const char* nvrtc, int64_t height, int64_t width, const char* architecture, char** message) {
  try {
    return strdup(c2r::cuda::ptx(nvrtc, height, width, architecture).c_str());
  } catch (const c10::Error& error) {
    *message = strdup(error.what_without_backtrace());
  } catch (const std::exception& error) {
    *message = strdup(error.what());
  }
  return nullptr;
}
