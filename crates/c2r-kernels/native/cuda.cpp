#include "cuda.h"

#include <ATen/ATen.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/GradMode.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <c10/util/Exception.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <mutex>
#include <optional>
#include <sstream>
#include <tuple>
#include <utility>
#include <vector>

#include "libraries.h"
#include "text.h"

namespace c2r {
namespace cuda {
namespace {

const char* const SOURCE =
#include "blocks.cu.inc"
    ;

// Rounding explains no more than this, relative to the largest value.
constexpr double SAME = 1e-4;
// Rounding may move a value that is less than this from zero to the other side, and then the gradient of ReLU is another.
constexpr double NEAR = 1e-4;

// The driver needs a current context in its thread. CUDA's runtime sets one with its first call there. A thread that has not called
// the runtime has none, even if its device is already that of x.
void enter(const at::Tensor& x) {
  void* context = nullptr;
  check(driver().context(&context), "cuCtxGetCurrent");
  if (context != nullptr) return;
  int device = 0;
  check(driver().device(&device, x.get_device()), "cuDeviceGet");
  check(driver().retain(&context, device), "cuDevicePrimaryCtxRetain");
  check(driver().set_context(context), "cuCtxSetCurrent");
}

int attribute(int index, int which) {
  int device = 0, value = 0;
  check(driver().device(&device, index), "cuDeviceGet");
  check(driver().attribute(&value, which, device), "cuDeviceGetAttribute");
  return value;
}

// 90 for 9.0.
int capability(int index) {
  // CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR.
  constexpr int MAJOR = 75, MINOR = 76;
  return 10 * attribute(index, MAJOR) + attribute(index, MINOR);
}

// Warps of a block of threads. blocks.cu has the same number.
int warps(const Size& size) {
  const int64_t windows = size.height / 2 * (size.width / 2);
  if (size.channels > 0) return static_cast<int>(size.height / 2);
  return windows >= 128 ? 16 : windows >= 32 ? 8 : 4;
}

// Bytes of shared memory of a block of threads, forward and backward. blocks.cu lays them out.
std::pair<int, int> shared_bytes(const Size& size) {
  const int64_t c = size.channels, h = size.height, w = size.width, sums = 32 * warps(size);
  const int64_t taps = 9 * c, filters = 16;
  const int64_t forward = c == 0 ? sums : c * (h + 2) * (w + 4) + filters * taps + sums;
  const int64_t backward = c == 0 ? sums : forward + filters * ((taps + 3) / 4 * 4) + filters * (((h + 2) * (w + 2)) | 1);
  return {static_cast<int>(4 * forward), static_cast<int>(4 * backward)};
}

struct Kernel {
  void* function = nullptr;
  int threads = 0, bytes = 0;
};

// The kernels for one device and size; not usable where `reason` says why.
struct Kernels {
  Kernel forward, backward;
  std::string reason;
};

using Key = std::tuple<int, int64_t, int64_t, int64_t>;

// Held while kernels are compiled and compared. The comparison waits for libtorch's thread of the device, so what runs there,
// a gradient that another thread asked for, must never wait for this: it takes `reading` only, which nobody holds for long.
std::mutex making;
std::mutex reading;
std::map<Key, Kernels> compiled;
// What there was no memory for. Where the functions are there, only the comparison is missing.
struct Waiting {
  Kernels kernels;
  std::string ptx;
  // Questions from one try to the next, twice as many each time, and how many of them are still to come: a try is expensive,
  // because libtorch frees the memory that it keeps before it gives up.
  int64_t pause = 0, left = 0;
};
std::map<Key, Waiting> waiting;

Key key(const at::Tensor& x, const Size& size) { return {x.get_device(), size.channels, size.height, size.width}; }

std::optional<Kernels> find(const Key& key) {
  const std::lock_guard<std::mutex> lock(reading);
  const auto found = compiled.find(key);
  if (found == compiled.end()) return std::nullopt;
  return found->second;
}

Kernels kernels_for(const at::Tensor& x, const Size& size) { return find(key(x, size)).value(); }

// Fills ptx where it is empty.
Kernels compile(const at::Tensor& x, const Size& size, std::string& ptx) {
  // CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN.
  constexpr int SHARED_MEMORY = 97;
  check_shared_memory(size, attribute(x.get_device(), SHARED_MEMORY));
  if (ptx.empty()) ptx = code("", size, capability(x.get_device()), false).ptx;
  enter(x);
  void* module = nullptr;
  // CUDA_ERROR_OUT_OF_MEMORY.
  constexpr int NO_MEMORY = 2;
  const int status = driver().load(&module, ptx.c_str());
  TORCH_CHECK_WITH(OutOfMemoryError, status != NO_MEMORY, "cuModuleLoadData found no memory");
  check(status, "cuModuleLoadData");
  const auto kernel = [&](const std::string& name, int bytes) {
    Kernel found;
    found.threads = 32 * warps(size);
    found.bytes = bytes;
    check(driver().function(&found.function, module, name.c_str()), "cuModuleGetFunction");
    // CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES: more than 48 KB have to be asked for.
    constexpr int DYNAMIC_BYTES = 8;
    if (bytes > 48 * 1024) check(driver().set_attribute(found.function, DYNAMIC_BYTES, bytes), "cuFuncSetAttribute");
    return found;
  };
  const std::string name = size.channels == 0 ? "norm_relu_pool" : "first_block";
  const auto [forward, backward] = shared_bytes(size);
  return {kernel(name + "_forward", forward), kernel(name + "_backward", backward), {}};
}

void launch(const Kernel& kernel, const at::Tensor& x, int64_t blocks, void** arguments) {
  enter(x);
  const c10::impl::VirtualGuardImpl guard(c10::kCUDA);
  void* stream = guard.getStreamNativeHandle(guard.getStream(x.device()));
  check(driver().launch(kernel.function, static_cast<unsigned>(blocks), 1, 1, kernel.threads, 1, 1, kernel.bytes, stream, arguments,
                        nullptr),
        "cuLaunchKernel");
}

const void* in(const at::Tensor& tensor) { return tensor.const_data_ptr(); }
void* out_of(const at::Tensor& tensor) { return tensor.defined() ? tensor.mutable_data_ptr() : nullptr; }

Size features(const at::Tensor& x) { return {0, x.size(2), x.size(3)}; }
Size images(const at::Tensor& x) { return {x.size(1), x.size(2), x.size(3)}; }

int groups_of(int channels) { return (channels + 31) / 32; }

void run_norm_forward(const Kernels& kernels, const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, double eps,
                      at::Tensor& moments, at::Tensor& out) {
  const void *from = in(x), *w = in(weight), *b = in(bias);
  void *m = out_of(moments), *to = out_of(out);
  float epsilon = static_cast<float>(eps);
  int channels = static_cast<int>(x.size(1)), groups = groups_of(channels);
  void* arguments[] = {&from, &w, &b, &epsilon, &channels, &groups, &m, &to};
  launch(kernels.forward, x, x.size(0) * groups, arguments);
}

void run_norm_backward(const Kernels& kernels, const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
                       const at::Tensor& moments, const at::Tensor& gradient, at::Tensor& x_gradient, at::Tensor& sums) {
  const void *from = in(x), *w = in(weight), *b = in(bias), *m = in(moments), *g = in(gradient);
  int channels = static_cast<int>(x.size(1)), groups = groups_of(channels);
  void *to = out_of(x_gradient), *of_weight = out_of(sums), *of_bias = static_cast<float*>(of_weight) + x.size(0) * channels;
  void* arguments[] = {&from, &w, &b, &m, &g, &channels, &groups, &to, &of_weight, &of_bias};
  launch(kernels.backward, x, x.size(0) * groups, arguments);
}

// Blocks of threads for each image: few images share out their filters, so that every multiprocessor has work.
int parts_of(int64_t n, int filters) {
  constexpr int64_t BLOCKS = 1024;
  return static_cast<int>(std::clamp<int64_t>(BLOCKS / n, 1, (filters + 15) / 16));
}

void run_first_forward(const Kernels& kernels, const First& inputs, double eps, int parts, at::Tensor& moments, at::Tensor& out) {
  const void *x = in(inputs.x), *w = in(inputs.weight), *norm = in(inputs.norm_weight), *bias = in(inputs.norm_bias);
  void *m = out_of(moments), *to = out_of(out);
  float epsilon = static_cast<float>(eps);
  int filters = static_cast<int>(inputs.weight.size(0));
  void* arguments[] = {&x, &w, &norm, &bias, &epsilon, &filters, &parts, &m, &to};
  launch(kernels.forward, inputs.x, inputs.x.size(0) * parts, arguments);
}

void run_first_backward(const Kernels& kernels, const First& inputs, const at::Tensor& moments, const at::Tensor& gradient,
                        at::Tensor& x_gradient, at::Tensor& weight_gradient, at::Tensor& sums) {
  const void *x = in(inputs.x), *w = in(inputs.weight), *norm = in(inputs.norm_weight), *bias = in(inputs.norm_bias),
             *m = in(moments), *g = in(gradient);
  int filters = static_cast<int>(inputs.weight.size(0));
  void *of_x = out_of(x_gradient), *of_w = out_of(weight_gradient), *of_norm = out_of(sums),
       *of_bias = static_cast<float*>(of_norm) + inputs.x.size(0) * filters;
  void* arguments[] = {&x, &w, &norm, &bias, &m, &g, &filters, &of_x, &of_w, &of_norm, &of_bias};
  launch(kernels.backward, inputs.x, inputs.x.size(0), arguments);
}

// Numbers around zero, in float. They are computed in double: float counts to no more than 2^24, and its fractions are coarse
// long before.
at::Tensor noise(at::IntArrayRef shape, double step, const at::TensorOptions& options) {
  const at::Tensor values = at::arange(c10::multiply_integers(shape), options.dtype(at::kDouble)).mul(step).frac().sub(0.4);
  return values.to(at::kFloat).view(shape);
}

// What both passes are compared on, and what libtorch's operators in double make of it.
struct Trial {
  // kernel is undefined for features.
  at::Tensor x, kernel, weight, bias, gradient;
  at::Tensor out;
  // Of x, weight, bias and kernel.
  torch::autograd::variable_list gradients;
  // How far what enters ReLU is from zero, for each window the nearest of its four values.
  at::Tensor distance;
};

// More channels than a block of threads has, and not a multiple of it. Nothing is asked of windows where ReLU has a value near
// zero: which side of zero it is on is a matter of rounding, and with it a whole value of the gradient.
Trial trial(const Size& size, const at::TensorOptions& options) {
  const int64_t n = 5, channels = 37, height = size.height, width = size.width;
  const bool first = size.channels > 0;
  Trial made;
  made.x = noise({n, first ? size.channels : channels, height, width}, 0.754877666, options);
  if (first) made.kernel = noise({channels, size.channels, 3, 3}, 0.32471796, options);
  made.weight = noise({channels}, 0.61803399, options) + 0.7;
  made.bias = noise({channels}, 0.41421356, options);
  c10::AutoGradMode with_gradients(true);
  torch::autograd::variable_list inputs;
  for (const at::Tensor& tensor : {made.x, made.weight, made.bias, made.kernel})
    if (tensor.defined()) inputs.push_back(tensor.to(at::kDouble).requires_grad_());
  const at::Tensor features = first ? at::conv2d(inputs[0], inputs[3], {}, {1, 1}, {1, 1}) : inputs[0];
  const at::Tensor entering = at::group_norm(features, channels, inputs[1], inputs[2], 1e-5);
  const at::Tensor y = at::avg_pool2d(at::relu(entering), {2, 2}, {2, 2});
  made.distance = -at::max_pool2d(-entering.detach().abs(), {2, 2}, {2, 2});
  const at::Tensor gradient = noise({n, channels, height / 2, width / 2}, 0.56984029, options).masked_fill(made.distance < NEAR, 0);
  made.gradient = gradient.contiguous(at::MemoryFormat::ChannelsLast);
  made.out = y.detach();
  made.gradients = torch::autograd::grad({y}, inputs, {made.gradient.to(at::kDouble)});
  return made;
}

void same(const at::Tensor& ours, const at::Tensor& theirs, const char* what) {
  const double apart = (ours - theirs).abs().max().item<double>(), size = theirs.abs().max().item<double>();
  TORCH_CHECK(apart <= SAME * size, "its ", what, " differs from that of libtorch's operators by ", apart, " of ", size);
}

// Both passes on noise against libtorch's operators in double. Throws what is wrong.
void compare(const Kernels& kernels, const Size& size, const at::TensorOptions& options) {
  const bool first = size.channels > 0;
  const Trial theirs = trial(size, options);
  const at::Tensor &x = theirs.x, &weight = theirs.weight, &bias = theirs.bias, &gradient = theirs.gradient;
  const int64_t n = x.size(0), channels = weight.size(0);
  at::Tensor out = at::empty_like(gradient), moments = at::empty({n, channels, 2}, options), sums = at::empty({2, n, channels}, options),
             x_gradient, kernel_gradients;
  if (first) {
    x_gradient = at::empty_like(x);
    kernel_gradients = at::empty({n, channels, size.channels, 3, 3}, options);
    const First inputs = {x, theirs.kernel, weight, bias};
    run_first_forward(kernels, inputs, 1e-5, parts_of(n, static_cast<int>(channels)), moments, out);
    run_first_backward(kernels, inputs, moments, gradient, x_gradient, kernel_gradients, sums);
  } else {
    const at::Tensor turned = x.contiguous(at::MemoryFormat::ChannelsLast);
    x_gradient = at::empty_like(turned);
    run_norm_forward(kernels, turned, weight, bias, 1e-5, moments, out);
    run_norm_backward(kernels, turned, weight, bias, moments, gradient, x_gradient, sums);
  }
  same(out, theirs.out, "output");
  same(x_gradient, theirs.gradients[0], "gradient of the input");
  same(sums.select(0, 0).sum(0), theirs.gradients[1], "gradient of the weight");
  same(sums.select(0, 1).sum(0), theirs.gradients[2], "gradient of the bias");
  if (!first) return;
  same(kernel_gradients.sum(0), theirs.gradients[3], "gradient of the convolution");
  // Each block of threads had one group of filters. Where images are many, it has all of them in turn.
  at::Tensor out_in_turn = at::full_like(out, NAN), moments_in_turn = at::full_like(moments, NAN);
  run_first_forward(kernels, {x, theirs.kernel, weight, bias}, 1e-5, 1, moments_in_turn, out_in_turn);
  TORCH_CHECK(at::equal(out, out_in_turn) && at::equal(moments, moments_in_turn),
              "its output differs where a block of threads goes over all filters");
}

// Whether blocks.cu has kernels of this size.
bool exists(const Size& size) {
  if (size.channels > 0)
    // Narrower planes of 28 or 32 rows would need more shared memory than the kernel reserves.
    return (size.channels == 1 || size.channels == 3) && size.height % 4 == 0 && size.width % 4 == 0 && size.height <= 32 &&
           size.width >= 8 && size.width <= 32;
  return size.height % 2 == 0 && size.width % 2 == 0 && size.height * size.width <= 128 * 128;
}

}  // namespace

bool countable(int64_t n, int64_t channels, int64_t width) {
  constexpr int64_t MOST = std::numeric_limits<int>::max();
  // Of a row of pixels and one more, or of the weights of a filter of three channels.
  const int64_t values = std::max<int64_t>(width + 1, 27);
  // A block for each 16 filters of an image at most.
  return channels <= MOST / values && n <= MOST / (channels / 16 + 1);
}

bool ready(const at::Tensor& x, const Size& size) {
  if (!exists(size)) return false;
  if (const auto known = find(key(x, size))) return known->reason.empty();
  const std::lock_guard<std::mutex> lock(making);
  // Another thread may have made them while this one waited.
  if (const auto known = find(key(x, size))) return known->reason.empty();
  Waiting tried;
  bool is_lasting = true;
  // `waiting` changes under both locks, so that one is enough to read it. What counts the questions is read here only.
  if (const auto found = waiting.find(key(x, size)); found != waiting.end()) {
    if (--found->second.left > 0) return false;
    tried = found->second;
  }
  Kernels& kernels = tried.kernels;
  kernels.reason.clear();
  try {
    const c10::DeviceGuard device(x.device());
    c10::AutoGradMode no_gradients(false);
    if (kernels.forward.function == nullptr) kernels = compile(x, size, tried.ptx);
    compare(kernels, size, x.options().requires_grad(false));
  } catch (const c10::OutOfMemoryError& error) {
    kernels.reason = error.what_without_backtrace();
    is_lasting = false;
  } catch (const c10::Error& error) {
    kernels.reason = error.what_without_backtrace();
  } catch (const std::exception& error) {
    kernels.reason = error.what();
  }
  const std::lock_guard<std::mutex> short_lock(reading);
  if (!is_lasting) {
    tried.left = tried.pause = std::max<int64_t>(1, 2 * tried.pause);
    waiting[key(x, size)] = tried;
    return false;
  }
  waiting.erase(key(x, size));
  return compiled.emplace(key(x, size), kernels).first->second.reason.empty();
}

void norm_forward(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, double eps, at::Tensor& moments,
                  at::Tensor& out) {
  const c10::DeviceGuard device(x.device());
  run_norm_forward(kernels_for(x, features(x)), x, weight, bias, eps, moments, out);
}

void norm_backward(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, const at::Tensor& moments,
                   const at::Tensor& gradient, at::Tensor& x_gradient, at::Tensor& sums) {
  const c10::DeviceGuard device(x.device());
  run_norm_backward(kernels_for(x, features(x)), x, weight, bias, moments, gradient, x_gradient, sums);
}

void first_forward(const First& inputs, double eps, at::Tensor& moments, at::Tensor& out) {
  const c10::DeviceGuard device(inputs.x.device());
  const int parts = parts_of(inputs.x.size(0), static_cast<int>(inputs.weight.size(0)));
  run_first_forward(kernels_for(inputs.x, images(inputs.x)), inputs, eps, parts, moments, out);
}

void first_backward(const First& inputs, const at::Tensor& moments, const at::Tensor& gradient, at::Tensor& x_gradient,
                    at::Tensor& weight_gradient, at::Tensor& sums) {
  const c10::DeviceGuard device(inputs.x.device());
  run_first_backward(kernels_for(inputs.x, images(inputs.x)), inputs, moments, gradient, x_gradient, weight_gradient, sums);
}

std::string state() {
  const std::lock_guard<std::mutex> lock(reading);
  std::ostringstream lines;
  const auto line = [&](const Key& at, const std::string& what) {
    const auto& [device, channels, height, width] = at;
    lines << "cuda:" << device << ", " << (channels == 0 ? "features" : channels == 1 ? "grey images" : "color images") << " of "
          << height << "x" << width << ": " << what << "\n";
  };
  for (const auto& [at, kernels] : compiled)
    line(at, kernels.reason.empty() ? "fused kernels, compared with libtorch's operators"
                                    : "libtorch's operators, because " + kernels.reason);
  for (const auto& [at, tried] : waiting) line(at, "libtorch's operators until there is memory, because " + tried.kernels.reason);
  return lines.str();
}

Code code(const std::string& name, const Size& size, int capability, bool registers) {
  const Nvrtc nvrtc(name);
  const std::string architecture = (registers ? "sm_" : "compute_") + std::to_string(nvrtc.architecture(capability));
  const auto define = [](const char* macro, int64_t value) { return std::string("-DC2R_") + macro + "=" + std::to_string(value); };
  std::vector<std::string> options = {"--gpu-architecture=" + architecture, "--std=c++17", define("CHANNELS", size.channels),
                                      define("HEIGHT", size.height), define("WIDTH", size.width), define("WARPS", warps(size))};
  if (registers) options.push_back("--ptxas-options=-v");
  std::vector<const char*> texts;
  for (const std::string& option : options) texts.push_back(option.c_str());
  void* program = nullptr;
  nvrtc.check(nvrtc.create(&program, SOURCE, "blocks.cu", 0, nullptr, nullptr), "nvrtcCreateProgram");
  const int status = nvrtc.compile(program, static_cast<int>(texts.size()), texts.data());
  size_t length = 0;
  Code made;
  nvrtc.log_size(program, &length);
  made.log.resize(length);
  nvrtc.log(program, made.log.data());
  if (status != 0) {
    nvrtc.destroy(&program);
    TORCH_CHECK(false, "NVRTC does not compile blocks.cu: ", nvrtc.error_name(status), ": ", made.log.c_str());
  }
  nvrtc.check(nvrtc.ptx_size(program, &length), "nvrtcGetPTXSize");
  made.ptx.resize(length);
  nvrtc.check(nvrtc.ptx(program, made.ptx.data()), "nvrtcGetPTX");
  nvrtc.destroy(&program);
  return made;
}

void check_shared_memory(const Size& size, int available) {
  constexpr int KIB = 1024;
  const auto [forward, backward] = shared_bytes(size);
  const int needed = std::max(forward, backward);
  TORCH_CHECK(needed <= available, "this GPU has ", available / KIB, " KiB of shared memory for a block of threads, and the kernels need ",
              (needed + KIB - 1) / KIB);
}

std::pair<double, double> trial_margin(const Size& size) {
  const Trial made = trial(size, at::TensorOptions(at::kFloat));
  const at::Tensor asked = made.gradient != 0;
  return {made.distance.masked_select(asked).min().item<double>(), asked.to(at::kDouble).mean().item<double>()};
}

}  // namespace cuda
}  // namespace c2r

// Texts that the caller frees.
extern "C" char* c2r_cuda_state() noexcept { return strdup(c2r::cuda::state().c_str()); }

extern "C" char* c2r_cuda_ptx(const char* nvrtc, const int64_t* size, int capability, char** message) {
  try {
    return strdup(c2r::cuda::code(nvrtc, {size[0], size[1], size[2]}, capability, false).ptx.c_str());
  } catch (const c10::Error& error) {
    *message = strdup(error.what_without_backtrace());
  } catch (const std::exception& error) {
    *message = strdup(error.what());
  }
  return nullptr;
}

// These return null, or a message that the caller frees. They fill log and margin, [2].
extern "C" char* c2r_cuda_log(const char* nvrtc, const int64_t* size, int capability, char** log) {
  return c2r::message_of([&] { *log = strdup(c2r::cuda::code(nvrtc, {size[0], size[1], size[2]}, capability, true).log.c_str()); });
}

extern "C" char* c2r_cuda_shared_memory(const int64_t* size, int available) {
  return c2r::message_of([&] { c2r::cuda::check_shared_memory({size[0], size[1], size[2]}, available); });
}

extern "C" char* c2r_cuda_trial_margin(const int64_t* size, double* margin) {
  return c2r::message_of([&] { std::tie(margin[0], margin[1]) = c2r::cuda::trial_margin({size[0], size[1], size[2]}); });
}
