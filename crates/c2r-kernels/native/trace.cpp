// A timeline of what libtorch runs, from its own profiler.

#include <torch/csrc/autograd/profiler_kineto.h>

#include <set>

#include "text.h"

using c2r::message_of;

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
