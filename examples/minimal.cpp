// Uses the installed library the way the README shows, and checks one value that can be computed by
// hand: with one expert, H = I = 1 and all weights 1, y = silu(x) * x.
#include <moe/moe.h>

#include <cmath>
#include <cstdio>

int main() {
  const moe::Problem problem{
      .shape = {.tokens = 1, .hidden = 1, .intermediate = 1, .experts = 1, .top_k = 1}};
  const moe::Tensor ones(moe::DType::kF32, {1, 1, 1});
  const moe::Tensor router(moe::DType::kF32, {1, 1});
  const moe::Tensor x(moe::DType::kF32, {1, 1});
  const moe::Tensor y(moe::DType::kF32, {1, 1});
  ones.as<float>()[0] = 1;
  router.as<float>()[0] = 1;
  x.as<float>()[0] = 2;
  moe::Layer layer = moe::Layer::create(
      {.level = "auto", .problem = problem, .tune_seconds = 0, .tune_cache = "off"},
      {router.view(), ones.view(), ones.view(), ones.view()});
  layer.forward(x.view(), y.view());
  const float expected = 2.0F / (1.0F + std::exp(-2.0F)) * 2.0F;
  std::printf("level %s: y = %.6f, expected %.6f\n", layer.level().name.c_str(), y.as<float>()[0],
              expected);
  return std::abs(y.as<float>()[0] - expected) <= 1e-5F ? 0 : 1;
}
