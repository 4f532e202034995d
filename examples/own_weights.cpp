// A layer over arrays that the program already has, in a workspace that it allocates itself: the library takes
// no copy of either. What an engine does that owns all memory.
#include <moe/moe.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>

int main() try {
  moe::Problem problem;
  problem.shape = {.tokens = 16, .hidden = 64, .intermediate = 96, .experts = 4, .top_k = 2};
  const moe::Shape& shape = problem.shape;

  // Row-major [out, in] per expert, as checkpoints store them: see moe::Weights.
  std::vector<float> router(static_cast<std::size_t>(shape.experts * shape.hidden));
  std::vector<float> gate(
      static_cast<std::size_t>(shape.experts * shape.intermediate * shape.hidden));
  std::vector<float> up(gate.size());
  std::vector<float> down(gate.size());
  std::vector<float> x(static_cast<std::size_t>(shape.tokens * shape.hidden));
  std::vector<float> y(x.size());
  unsigned state = 1;
  for (auto* values : {&router, &gate, &up, &down, &x}) {
    for (float& value : *values) {
      state = state * 1664525U + 1013904223U;
      value = (static_cast<float>(state >> 8) / 8388608.0F - 1.0F) * 0.25F;
    }
  }
  const auto view = [](std::vector<float>& values, std::initializer_list<std::int64_t> sizes) {
    return moe::TensorView(values.data(), moe::DType::kF32, sizes);
  };
  moe::Weights weights;
  weights.router = view(router, {shape.experts, shape.hidden});
  weights.gate = view(gate, {shape.experts, shape.intermediate, shape.hidden});
  weights.up = view(up, {shape.experts, shape.intermediate, shape.hidden});
  weights.down = view(down, {shape.experts, shape.hidden, shape.intermediate});

  moe::LayerOptions options;
  options.level = "memefficient";
  options.problem = problem;
  options.workspace_bytes = moe::Layer::predict(options).workspace;
  const std::size_t rounded = (options.workspace_bytes + moe::kWorkspaceAlignment - 1) /
                              moe::kWorkspaceAlignment * moe::kWorkspaceAlignment;
  const std::unique_ptr<void, decltype(&std::free)> workspace(
      std::aligned_alloc(moe::kWorkspaceAlignment, rounded), &std::free);
  options.workspace = workspace.get();

  moe::Layer layer = moe::Layer::create(options, weights);
  const moe::TensorView x_view = view(x, {shape.tokens, shape.hidden});
  const moe::TensorView y_view = view(y, {shape.tokens, shape.hidden});
  moe::poison(y_view);
  layer.forward(x_view, y_view);

  const moe::Comparison comparison = moe::Oracle(problem, weights, x_view).compare(y_view);
  std::printf("%s in a workspace of %llu bytes: %s\n", layer.level().name.c_str(),
              static_cast<unsigned long long>(layer.workspace_bytes()),
              comparison.describe().c_str());
  return comparison.passed ? 0 : 1;
} catch (const moe::Error& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
