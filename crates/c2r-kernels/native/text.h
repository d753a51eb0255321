// Bytes made in C++ and handed to Rust.

#pragma once

#include <c10/util/Exception.h>

#include <cstdlib>
#include <cstring>
#include <exception>
#include <new>
#include <string>

namespace c2r {

// What `make` returns, as bytes that the caller frees. Null if they are none, or if it throws: then with a message that the
// caller frees, too.
template <typename Make>
char* handed_over(const Make& make, size_t* length, char** message) {
  try {
    const std::string out = make();
    if (out.empty()) return nullptr;
    char* copy = static_cast<char*>(malloc(out.size()));
    if (copy == nullptr) throw std::bad_alloc();
    memcpy(copy, out.data(), out.size());
    *length = out.size();
    return copy;
  } catch (const c10::Error& error) {
    *message = strdup(error.what_without_backtrace());
  } catch (const std::exception& error) {
    *message = strdup(error.what());
  }
  return nullptr;
}

}  // namespace c2r
