// Rewrites a TorchScript model: what it computes by instance normalization, ReLU and 2x2 average pooling becomes
// c2r::norm_relu_pool, and with a 3x3 convolution before it c2r::block.

#include <torch/csrc/jit/ir/constants.h>
#include <torch/csrc/jit/ir/subgraph_matcher.h>
#include <torch/csrc/jit/passes/constant_propagation.h>
#include <torch/csrc/jit/passes/dead_code_elimination.h>
#include <torch/csrc/jit/passes/freeze_module.h>
#include <torch/csrc/jit/passes/subgraph_rewrite.h>
#include <torch/csrc/jit/serialization/import.h>
#include <torch/script.h>

#include <sstream>

#include "text.h"

namespace c2r {
namespace {

using namespace torch::jit;
using Values = std::unordered_map<std::string, Value*>;

// The constant that a variable of the pattern stands for, if it is one.
std::optional<IValue> constant(const Match& match, const Values& names, const char* name) {
  return toIValue(match.values_map.at(names.at(name)));
}

bool is(const Match& match, const Values& names, const char* name, bool value) {
  const auto found = constant(match, names, name);
  return found && found->isBool() && found->toBool() == value;
}

bool is_none(const Match& match, const Values& names, const char* name) {
  const auto found = constant(match, names, name);
  return found && found->isNone();
}

bool is_list(const Match& match, const Values& names, const char* name, int64_t value, bool or_empty = false) {
  const auto found = constant(match, names, name);
  if (!found || !found->isIntList()) return false;
  const auto list = found->toIntVector();
  return list == std::vector<int64_t>{value, value} || list == std::vector<int64_t>{value} || (or_empty && list.empty());
}

// Kernel 2x2, stride 2, neither padding nor a size rounded up.
bool is_two_by_two(const Match& match, const Values& names) {
  return is_list(match, names, "kernel", 2) && is_list(match, names, "stride", 2, true) && is_list(match, names, "padding", 0) &&
         is(match, names, "ceil", false) && is_none(match, names, "divisor");
}

// Weight and bias are constants, one value per channel.
std::optional<int64_t> channels(const Match& match, const Values& names) {
  const auto weight = constant(match, names, "w"), bias = constant(match, names, "b");
  if (!weight || !bias || !weight->isTensor() || !bias->isTensor()) return std::nullopt;
  const at::Tensor w = weight->toTensor(), b = bias->toTensor();
  if (w.dim() != 1 || b.sizes() != w.sizes()) return std::nullopt;
  return w.size(0);
}

bool is_instance_norm(const Match& match, const Values& names) {
  return channels(match, names) && is_none(match, names, "mean") && is_none(match, names, "var") && is(match, names, "use", true);
}

bool is_group_per_channel(const Match& match, const Values& names) {
  const auto groups = constant(match, names, "groups");
  const auto n = channels(match, names);
  return groups && n && groups->isInt() && groups->toInt() == *n;
}

struct Norm {
  const char* inputs;
  const char* call;
  bool (*fits)(const Match&, const Values&);
};

const Norm NORMS[] = {
    {"%mean, %var, %use, %momentum, %cudnn", "aten::instance_norm(%x, %w, %b, %mean, %var, %use, %momentum, %eps, %cudnn)",
     is_instance_norm},
    {"%groups, %cudnn", "aten::group_norm(%x, %groups, %w, %b, %eps, %cudnn)", is_group_per_channel},
};

// A 3x3 convolution: padding 1, stride 1, constant weights.
bool is_block_convolution(const Match& match, const Values& names) {
  const auto weight = constant(match, names, "cw"), bias = constant(match, names, "cb"), groups = constant(match, names, "groups");
  if (!weight || !bias || !groups || !weight->isTensor() || !bias->isTensor() || !groups->isInt()) return false;
  const at::Tensor w = weight->toTensor();
  return w.dim() == 4 && w.size(2) == 3 && w.size(3) == 3 && groups->toInt() == 1 &&
         is_list(match, names, "stride", 1) && is_list(match, names, "padding", 1) && is_list(match, names, "dilation", 1);
}

// As a script and as a trace write it.
const std::pair<const char*, const char*> CONVOLUTIONS[] = {
    {"", "aten::conv2d(%x, %cw, %cb, %stride, %padding, %dilation, %groups)"},
    {", %transposed, %output_padding, %benchmark, %deterministic, %cudnn, %tf32",
     "aten::_convolution(%x, %cw, %cb, %stride, %padding, %dilation, %transposed, %output_padding, %groups, %benchmark, "
     "%deterministic, %cudnn, %tf32)"},
};

// Takes convolutions into the operator that follows them.
void rewrite_blocks(std::shared_ptr<Graph>& graph) {
  for (const auto& [more, call] : CONVOLUTIONS) {
    const std::string inputs = std::string("graph(%x, %cw, %cb, %stride, %padding, %dilation, %groups, %w, %b, %eps") + more + "):\n";
    SubgraphRewriter rewriter;
    rewriter.RegisterRewritePattern(inputs + "  %c = " + call + "\n  %p = c2r::norm_relu_pool(%c, %w, %b, %eps)\n  return (%p)",
                                    inputs + "  %p = c2r::block(%x, %cw, %cb, %w, %b, %eps)\n  return (%p)");
    const bool traced = *more != 0;
    rewriter.runOnGraph(graph, [traced](const Match& match, const Values& names) {
      return is_block_convolution(match, names) && (!traced || is(match, names, "transposed", false));
    });
  }
}

// Replaces in graph; returns how many.
size_t rewrite(std::shared_ptr<Graph>& graph) {
  size_t n = 0;
  for (const Norm& norm : NORMS)
    for (const char* relu : {"relu", "relu_"}) {
      const std::string inputs = std::string("graph(%x, %w, %b, %eps, %kernel, %stride, %padding, %ceil, %count, %divisor, ") + norm.inputs + "):\n";
      const std::string from = inputs + "  %n = " + norm.call + "\n  %r = aten::" + relu +
                               "(%n)\n  %p = aten::avg_pool2d(%r, %kernel, %stride, %padding, %ceil, %count, %divisor)\n  return (%p)";
      const std::string to = inputs + "  %p = c2r::norm_relu_pool(%x, %w, %b, %eps)\n  return (%p)";
      SubgraphRewriter rewriter;
      rewriter.RegisterRewritePattern(from, to);
      const auto fits = [&](const Match& match, const Values& names) {
        const bool all = norm.fits(match, names) && is_two_by_two(match, names);
        n += all;
        return all;
      };
      rewriter.runOnGraph(graph, fits);
    }
  rewrite_blocks(graph);
  return n;
}

}  // namespace

// The model of `bytes` rewritten, or an empty text if there is nothing to rewrite.
std::string tune(const std::string& bytes, size_t* n_replaced) {
  std::istringstream in(bytes);
  Module module = torch::jit::load(in, at::kCPU);
  module.eval();
  Module frozen = freeze_module(module);
  auto graph = frozen.get_method("forward").graph();
  ConstantPropagation(graph);
  *n_replaced = rewrite(graph);
  if (*n_replaced == 0) return {};
  EliminateDeadCode(graph);
  std::ostringstream out;
  frozen.save(out);
  return out.str();
}

}  // namespace c2r

// Bytes that the caller frees, or null: with a message if it failed, without one if there is nothing to rewrite.
extern "C" char* c2r_tune_torchscript(const char* bytes, size_t length, size_t* out_length, size_t* n_replaced, char** message) {
  return c2r::handed_over([&] { return c2r::tune(std::string(bytes, length), n_replaced); }, out_length, message);
}
