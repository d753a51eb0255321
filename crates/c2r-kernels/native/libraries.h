// NVRTC and the driver of CUDA, which are found when the program runs.
#pragma once

#include <ATen/Context.h>
#include <c10/util/Exception.h>

#include <dlfcn.h>

#include <algorithm>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace c2r {
namespace cuda {

// A function of a library that is loaded by name.
template <typename F>
F* symbol(void* library, const char* name) {
  void* found = dlsym(library, name);
  TORCH_CHECK(found != nullptr, "it has no ", name);
  return reinterpret_cast<F*>(found);
}

inline void* open(const std::vector<std::string>& names) {
  std::string tried;
  for (const std::string& name : names) {
    if (void* library = dlopen(name.c_str(), RTLD_LAZY | RTLD_GLOBAL)) return library;
    tried += (tried.empty() ? "" : ", ") + name;
  }
  TORCH_CHECK(false, "none of these can be loaded: ", tried);
}

// The folder of the library that has a function.
template <typename F>
std::optional<std::filesystem::path> folder_of(F* function) {
  Dl_info info;
  if (dladdr(reinterpret_cast<void*>(function), &info) == 0 || info.dli_fname == nullptr) return std::nullopt;
  return std::filesystem::path(info.dli_fname).parent_path();
}

// The NVRTC that libtorch itself uses comes first. libcaffe2_nvrtc.so has none of its functions, but depends on the right
// libnvrtc and knows where it is, in a package of Python, too.
inline std::vector<std::string> nvrtc_names() {
  std::vector<std::string> names = {"libcaffe2_nvrtc.so", "libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"};
  if (const auto libtorch = folder_of(&at::globalContext)) names.insert(names.begin(), *libtorch / "libcaffe2_nvrtc.so");
  return names;
}

// NVRTC. Its functions return 0 for success.
struct Nvrtc {
  explicit Nvrtc(const std::string& name)
      : library(open(name.empty() ? nvrtc_names() : std::vector<std::string>{name})),
        create(symbol<int(void**, const char*, const char*, int, const char* const*, const char* const*)>(library, "nvrtcCreateProgram")),
        compile(symbol<int(void*, int, const char* const*)>(library, "nvrtcCompileProgram")),
        ptx_size(symbol<int(void*, size_t*)>(library, "nvrtcGetPTXSize")),
        ptx(symbol<int(void*, char*)>(library, "nvrtcGetPTX")),
        log_size(symbol<int(void*, size_t*)>(library, "nvrtcGetProgramLogSize")),
        log(symbol<int(void*, char*)>(library, "nvrtcGetProgramLog")),
        destroy(symbol<int(void**)>(library, "nvrtcDestroyProgram")),
        count(symbol<int(int*)>(library, "nvrtcGetNumSupportedArchs")),
        supported(symbol<int(int*)>(library, "nvrtcGetSupportedArchs")),
        error_name(symbol<const char*(int)>(library, "nvrtcGetErrorString")) {
    load_builtins();
  }

  // NVRTC opens another library by name, which the loader does not find in a package of Python: the one beside it is loaded
  // before.
  void load_builtins() const {
    const auto folder = folder_of(create);
    if (!folder) return;
    std::error_code none;
    for (const auto& entry : std::filesystem::directory_iterator(*folder, none)) {
      const std::string name = entry.path().filename().string();
      if (name.rfind("libnvrtc-builtins.so", 0) == 0) dlopen(entry.path().c_str(), RTLD_LAZY | RTLD_GLOBAL);
    }
  }

  void check(int status, const char* what) const {
    TORCH_CHECK(status == 0, what, " failed with ", error_name(status), " (", status, ")");
  }

  // The largest architecture that it compiles for and that a GPU of this capability runs: the driver compiles further, for a GPU
  // that is newer than this NVRTC.
  int architecture(int capability) const {
    int n = 0;
    check(count(&n), "nvrtcGetNumSupportedArchs");
    std::vector<int> all(n);
    check(supported(all.data()), "nvrtcGetSupportedArchs");
    int largest = 0;
    for (int one : all)
      if (one <= capability) largest = std::max(largest, one);
    TORCH_CHECK(largest > 0, "NVRTC has no architecture for a GPU of compute capability ", capability / 10, ".", capability % 10);
    return largest;
  }

  void* library;
  int (*create)(void**, const char*, const char*, int, const char* const*, const char* const*);
  int (*compile)(void*, int, const char* const*);
  int (*ptx_size)(void*, size_t*);
  int (*ptx)(void*, char*);
  int (*log_size)(void*, size_t*);
  int (*log)(void*, char*);
  int (*destroy)(void**);
  int (*count)(int*);
  int (*supported)(int*);
  const char* (*error_name)(int);
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
            library, "cuLaunchKernel")),
        set_attribute(symbol<int(void*, int, int)>(library, "cuFuncSetAttribute")),
        context(symbol<int(void**)>(library, "cuCtxGetCurrent")),
        set_context(symbol<int(void*)>(library, "cuCtxSetCurrent")),
        retain(symbol<int(void**, int)>(library, "cuDevicePrimaryCtxRetain")),
        error_name(symbol<int(int, const char**)>(library, "cuGetErrorName")) {}

  void* library;
  int (*device)(int*, int);
  int (*attribute)(int*, int, int);
  int (*load)(void**, const void*);
  int (*function)(void**, void*, const char*);
  int (*launch)(void*, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void*, void**, void**);
  int (*set_attribute)(void*, int, int);
  int (*context)(void**);
  int (*set_context)(void*);
  int (*retain)(void**, int);
  int (*error_name)(int, const char**);
};

inline const Driver& driver() {
  static const Driver loaded;
  return loaded;
}

inline void check(int status, const char* what) {
  if (status == 0) return;
  const char* name = nullptr;
  // It has no name for an error that is newer than the driver.
  driver().error_name(status, &name);
  TORCH_CHECK(false, what, " failed with ", name != nullptr ? name : "an unknown error", " (", status, ")");
}

}  // namespace cuda
}  // namespace c2r
