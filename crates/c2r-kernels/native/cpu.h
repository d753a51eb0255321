// Which vectors this processor has. Kernels are compiled once for each level and chosen when first used. The environment variable
// ATEN_CPU_CAPABILITY (avx2 or default) limits the level, as it limits libtorch.
#pragma once

#include <cstdlib>
#include <cstring>

namespace c2r {

enum class Level { any, avx2, avx512 };

#if defined(__x86_64__)
#define C2R_AVX2 __attribute__((target("avx2,fma")))
#define C2R_AVX512 __attribute__((target("avx512f,avx512vl,avx512bw,avx512dq,avx2,fma,prefer-vector-width=512")))
#endif

inline Level level() {
  static const Level chosen = [] {
#if defined(__x86_64__)
    __builtin_cpu_init();
    const char* limit = std::getenv("ATEN_CPU_CAPABILITY");
    const auto limited = [limit](const char* to) { return limit && std::strcmp(limit, to) == 0; };
    if (limited("default")) return Level::any;
    if (__builtin_cpu_supports("fma") && __builtin_cpu_supports("avx2")) {
      const bool wide = !limited("avx2") && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
      return wide ? Level::avx512 : Level::avx2;
    }
#endif
    return Level::any;
  }();
  return chosen;
}

}  // namespace c2r
