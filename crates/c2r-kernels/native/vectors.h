// Vectors of the compiler (GCC and Clang), loaded from and stored to any address.
#pragma once

#include <cstring>

#include "planes.h"

namespace c2r {

template <int LANES_>
struct VectorOf {
  typedef float type __attribute__((vector_size(4 * LANES_)));
};

template <typename V>
constexpr int lanes() {
  return sizeof(V) / sizeof(float);
}

template <typename V>
C2R_INLINE V load(const float* at) {
  V v;
  memcpy(&v, at, sizeof(V));
  return v;
}

template <typename V>
C2R_INLINE void store(float* at, V v) {
  memcpy(at, &v, sizeof(V));
}

}  // namespace c2r
