// Makes a TorchScript model of parameters and the text of its `forward`.

#include <torch/script.h>

#include <map>
#include <sstream>

#include "text.h"

namespace c2r {
namespace {

using torch::jit::Module;

// The submodules by their path, such as `features.0`; the root has an empty one.
struct Tree {
  std::map<std::string, Module> modules;

  Module make(const Module* root) {
    const c10::QualifiedName name("__torch__.c2r.Classifier");
    Module module = root ? Module(name, root->_ivalue()->compilation_unit(), true) : Module(name);
    module.register_attribute("training", c10::BoolType::get(), false);
    return module;
  }

  Module& at(const std::string& path) {
    const auto found = modules.find(path);
    if (found != modules.end()) return found->second;
    if (path.empty()) return modules.emplace(path, make(nullptr)).first->second;
    const size_t dot = path.rfind('.');
    Module& parent = at(dot == std::string::npos ? "" : path.substr(0, dot));
    Module& child = modules.emplace(path, make(&modules.at(""))).first->second;
    parent.register_module(dot == std::string::npos ? path : path.substr(dot + 1), child);
    return child;
  }
};

}  // namespace

// The first `n_parameters` of `n` tensors are parameters, the others buffers.
std::string script(const char* const* names, const at::Tensor* const* tensors, size_t n_parameters, size_t n, const char* forward) {
  Tree tree;
  Module& root = tree.at("");
  for (size_t i = 0; i < n; ++i) {
    const std::string name = names[i];
    const size_t dot = name.rfind('.');
    Module& owner = tree.at(dot == std::string::npos ? "" : name.substr(0, dot));
    const bool is_parameter = i < n_parameters;
    at::Tensor copy = tensors[i]->detach().to(at::kCPU, tensors[i]->scalar_type(), false, /*copy=*/true).contiguous();
    owner.register_parameter(dot == std::string::npos ? name : name.substr(dot + 1), copy.set_requires_grad(is_parameter), !is_parameter);
  }
  root.define(forward);
  std::ostringstream out;
  root.save(out);
  return out.str();
}

}  // namespace c2r

// Bytes that the caller frees, or null and a message.
extern "C" char* c2r_script(const char* const* names, const at::Tensor* const* tensors, size_t n_parameters, size_t n,
                            const char* forward, size_t* out_length, char** message) {
  return c2r::handed_over([&] { return c2r::script(names, tensors, n_parameters, n, forward); }, out_length, message);
}
