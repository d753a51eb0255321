// Counts the operators that a thread runs, and what they move between Rust's memory, the CPU and a GPU.

#include <ATen/ATen.h>
#include <ATen/record_function.h>

#include <atomic>
#include <cstdint>
#include <cstring>
#include <memory>

namespace {

// The backward pass of a GPU runs on a thread of libtorch.
std::atomic<uint64_t> calls, reads, copies, copied_bytes;
// Whether what is counted runs on a GPU.
std::atomic<bool> on_gpu;
// Operators, and operators that read, around the one that begins.
thread_local int depth = 0, reading = 0;

// Where the values of a copy come from.
enum class Source { none, rust, cpu, gpu };

struct Begun : at::ObserverContext {
  bool reads = false;
  Source source = Source::none;
};

// Operators whose result lies on the CPU, or has a size that depends on values: on a GPU they wait.
bool waits(const char* name) {
  for (const char* one : {"_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "unique_dim", "unique_consecutive"})
    if (std::strcmp(name, one) == 0) return true;
  return false;
}

const char* operator_name(const at::RecordFunction& f) {
  const char* name = f.name();
  return std::strncmp(name, "aten::", 6) == 0 ? name + 6 : "";
}

// What an operator copies from, if it may copy between a GPU and the CPU, or from Rust's memory.
Source source(const char* name, c10::ArrayRef<const c10::IValue> inputs) {
  // torch-sys makes a tensor of a slice with `zeros` that names no device; everybody else names one.
  if (!on_gpu) return std::strcmp(name, "zeros") == 0 && inputs.size() > 3 && inputs[3].isNone() ? Source::rust : Source::none;
  const size_t from = std::strcmp(name, "_to_copy") == 0 ? 0 : std::strcmp(name, "copy_") == 0 ? 1 : inputs.size();
  if (from >= inputs.size() || !inputs[from].isTensor()) return Source::none;
  return inputs[from].toTensor().is_cuda() ? Source::gpu : Source::cpu;
}

std::unique_ptr<at::ObserverContext> begin(const at::RecordFunction& f) {
  auto begun = std::make_unique<Begun>();
  if (depth++ == 0) ++calls;
  const char* name = operator_name(f);
  begun->reads = waits(name);
  if (begun->reads && reading++ == 0) ++reads;
  begun->source = source(name, f.inputs());
  return begun;
}

void end(const at::RecordFunction& f, at::ObserverContext* context) {
  --depth;
  const auto* begun = static_cast<Begun*>(context);
  if (begun->reads) --reading;
  if (begun->source == Source::none || f.outputs().size() != 1) return;
  const at::Tensor& to = f.outputs()[0].toTensor();
  if (begun->source != Source::rust && to.is_cuda() == (begun->source == Source::gpu)) return;
  ++copies;
  copied_bytes += to.nbytes();
  // Another operator that reads may have made this copy.
  if (begun->source == Source::gpu && reading == 0) ++reads;
}

}  // namespace

extern "C" {

// Counts from here, until c2r_count_end with what this returns. One at a time in a process.
uint64_t c2r_count_begin(bool gpu) noexcept {
  calls = reads = copies = copied_bytes = 0;
  on_gpu = gpu;
  return at::addThreadLocalCallback(
      at::RecordFunctionCallback(&begin, &end).needsInputs(true).needsOutputs(true).scopes({at::RecordScope::FUNCTION}));
}

// Writes calls, reads, copies and copied bytes.
void c2r_count_end(uint64_t handle, uint64_t* out) noexcept {
  at::removeCallback(handle);
  out[0] = calls;
  out[1] = reads;
  out[2] = copies;
  out[3] = copied_bytes;
}

}
