// Bytes and messages made in C++ and handed to Rust.

#pragma once

#include <c10/util/Exception.h>

#include <cstdlib>
#include <cstring>
#include <exception>
#include <new>
#include <string>

namespace c2r {

// Runs `act`. Returns null, or the message of its exception, which the caller frees.
template <typename Act>
char* message_of(const Act& act) {
  try {
    act();
    return nullptr;
  } catch (const c10::Error& error) {
    return strdup(error.what_without_backtrace());
  } catch (const std::exception& error) {
    return strdup(error.what());
  }
}

// What `make` returns, as bytes that the caller frees. Null if they are none, or if it throws: then with a message that the
// caller frees, too.
template <typename Make>
char* handed_over(const Make& make, size_t* length, char** message) {
  char* copy = nullptr;
  char* thrown = message_of([&] {
    const std::string out = make();
    if (out.empty()) return;
    copy = static_cast<char*>(malloc(out.size()));
    if (copy == nullptr) throw std::bad_alloc();
    memcpy(copy, out.data(), out.size());
    *length = out.size();
  });
  if (thrown != nullptr) *message = thrown;
  return copy;
}

}  // namespace c2r
