// A timeline of what libtorch runs, from its own profiler.

#include <c10/util/Exception.h>
#include <torch/csrc/autograd/profiler_kineto.h>

#include <cstring>
#include <exception>
#include <set>

namespace {

// The message of an exception, which the caller frees; null if there is none.
template <typename Do>
char* message_of(const Do& act) {
  try {
    act();
    return nullptr;
  } catch (const c10::Error& error) {
    return strdup(error.what_without_backtrace());
  } catch (const std::exception& error) {
    return strdup(error.what());
  }
}

}  // namespace

extern "C" char* c2r_trace_begin(bool gpu) {
  namespace profiler = torch::profiler::impl;
  return message_of([gpu] {
    const profiler::ProfilerConfig config(profiler::ProfilerState::KINETO, /*report_input_shapes=*/true);
    std::set<profiler::ActivityType> activities = {profiler::ActivityType::CPU};
    if (gpu) activities.insert(profiler::ActivityType::CUDA);
    torch::autograd::profiler::prepareProfiler(config, activities);
    torch::autograd::profiler::enableProfiler(config, activities, {at::RecordScope::FUNCTION});
  });
}

// Without a path, what was recorded is dropped.
extern "C" char* c2r_trace_end(const char* path) {
  return message_of([path] {
    const auto recorded = torch::autograd::profiler::disableProfiler();
    if (path != nullptr) recorded->save(path);
  });
}
