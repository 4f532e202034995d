// The kernels that NVRTC makes for one layer against the precompiled ones, which have tests of their
// own against the host.
#include "cuda/ops/layer_kernels.h"

#include <cmath>
#include <limits>

#include "core/rng.h"
#include "core/scalar.h"
#include "cuda/device_test.h"
#include "cuda/nvrtc.h"

namespace moe::cuda {
namespace {

class CudaLayerKernels : public CudaTest {
 protected:
  void SetUp() override {
    CudaTest::SetUp();
    if (!IsSkipped() && !nvrtc_unavailable().empty()) GTEST_SKIP() << nvrtc_unavailable();
  }

  /// What one form leaves behind.
  template <class Element>
  struct Result {
    std::vector<std::int32_t> offsets;       // on the device
    std::vector<std::int32_t> host_offsets;  // as the host was told
    std::vector<std::int32_t> dst_row;
    std::vector<float> topk_weights;
    std::vector<Element> rows, act, y;
  };

  template <class Element>
  Result<Element> run(LayerKernels& kernels, const Problem& problem,
                      const std::vector<float>& logits, const std::vector<Element>& x,
                      const std::vector<Element>& gate_up, const std::vector<Element>& y_perm,
                      std::int64_t offset) {
    const Shape& shape = problem.shape;
    const std::int64_t tokens = static_cast<std::int64_t>(x.size()) / shape.hidden;
    const std::int64_t routed = tokens * shape.top_k;
    const DeviceArray<float> on_logits(device(), logits);
    const DeviceArray<Element> on_x(device(), x, offset);
    const DeviceArray<std::int32_t> idx(device(), routed);
    const DeviceArray<float> weights(device(), routed);
    const DeviceArray<std::int32_t> offsets(device(), shape.experts + 1);
    const DeviceArray<std::int32_t> dst_row(device(), routed);
    const DeviceArray<std::int32_t> scratch(device(),
                                            layer_kernels_scratch(problem, device().facts()));
    const DeviceArray<Element> rows(device(), routed * shape.hidden);
    const DeviceArray<Element> act(device(), gate_up);
    const DeviceArray<Element> on_y_perm(device(), y_perm);
    const DeviceArray<Element> y(device(), tokens * shape.hidden, offset);
    RoutedBuffers b;
    b.logits = on_logits.data();
    b.topk_idx = idx.data();
    b.topk_weights = weights.data();
    b.permutation = {offsets.data(), dst_row.data(), scratch.data()};
    b.rows = reinterpret_cast<std::byte*>(rows.data());
    b.gate_up = reinterpret_cast<std::byte*>(act.data());
    const TensorView x_view(on_x.data(), problem.dtype, {tokens, shape.hidden});
    const TensorView y_view(y.data(), problem.dtype, {tokens, shape.hidden});

    kernels.route({.logits = b.logits}, b, tokens, HostReads::kOffsets, stream());
    kernels.permute(x_view, b, stream());
    const std::int32_t* const on_host = kernels.wait_for_offsets(stream());
    Result<Element> result;
    result.host_offsets.assign(on_host, on_host + shape.experts + 1);
    kernels.activate(b, 0, routed, stream());
    device().synchronise();
    result.rows = rows.download();
    b.rows = reinterpret_cast<std::byte*>(on_y_perm.data());
    kernels.combine(b, y_view, stream());
    device().synchronise();
    result.offsets = offsets.download();
    result.dst_row = dst_row.download();
    result.topk_weights = weights.download();
    result.act = act.download();
    result.y = y.download();
    EXPECT_TRUE(idx.intact() && weights.intact() && offsets.intact() && dst_row.intact() &&
                scratch.intact() && rows.intact() && act.intact() && y.intact());
    return result;
  }

  template <class Element>
  static std::vector<Element> normal(std::int64_t count, std::uint64_t stream) {
    std::vector<Element> values(static_cast<std::size_t>(count));
    for (std::size_t i = 0; i < values.size(); ++i) {
      values[i] = from_float<Element>(static_cast<float>(random_normal(77, stream, i)));
    }
    return values;
  }

  template <class Element>
  static void expect_close(const std::vector<Element>& got, const std::vector<Element>& want,
                           double relative, const char* what) {
    ASSERT_EQ(got.size(), want.size());
    for (std::size_t i = 0; i < got.size(); ++i) {
      const double a = to_float(got[i]);
      const double b = to_float(want[i]);
      ASSERT_TRUE(std::abs(a - b) <= relative * (std::abs(b) + 1e-3))
          << what << "[" << i << "] is " << a << ", precompiled " << b;
    }
  }

  /// Forwards of `tokens` and of fewer rows, by one LayerKernels of each form.
  template <class Element>
  void check(const Shape& shape, std::initializer_list<std::int64_t> offsets = {0},
             bool skewed = false) {
    const Problem problem{shape, sizeof(Element) == 4 ? DType::kF32 : DType::kBF16};
    SCOPED_TRACE(testing::Message()
                 << to_string(shape) << " " << name_of(problem.dtype) << " skewed " << skewed);
    const auto precompiled = make_precompiled_kernels(problem, device().facts());
    const auto specialised = make_specialised_kernels(problem, device().facts(), "off");
    std::uint64_t stream = 0;
    for (const std::int64_t tokens : {shape.tokens, std::int64_t{1}, (shape.tokens + 1) / 2}) {
      const std::int64_t routed = tokens * shape.top_k;
      std::vector<float> logits = normal<float>(tokens * shape.experts, ++stream);
      if (skewed) {  // every token wants the last experts; ties among the rest
        for (std::size_t i = 0; i < logits.size(); ++i) {
          logits[i] = static_cast<float>(static_cast<std::int64_t>(i) % shape.experts / 3);
        }
      }
      const std::vector<Element> x = normal<Element>(tokens * shape.hidden, ++stream);
      const auto gate_up = normal<Element>(routed * 2 * shape.intermediate, ++stream);
      const auto y_perm = normal<Element>(routed * shape.hidden, ++stream);
      for (const std::int64_t offset : offsets) {
        SCOPED_TRACE(testing::Message() << tokens << " tokens, offset " << offset);
        const auto want = run(*precompiled, problem, logits, x, gate_up, y_perm, offset);
        const auto got = run(*specialised, problem, logits, x, gate_up, y_perm, offset);
        ASSERT_EQ(got.offsets, want.offsets);
        ASSERT_EQ(got.offsets.back(), routed);
        ASSERT_EQ(got.host_offsets, want.offsets);
        ASSERT_EQ(want.host_offsets, want.offsets);
        ASSERT_EQ(got.dst_row, want.dst_row);
        expect_close(got.topk_weights, want.topk_weights, 1e-6, "topk_weights");
        expect_close(got.rows, want.rows, 0, "rows");
        const double ulp = sizeof(Element) == 4 ? 1e-6 : 0x1p-7;
        expect_close(got.act, want.act, ulp, "act");
        expect_close(got.y, want.y, 4 * ulp, "y");
      }
    }
  }
};

TEST_F(CudaLayerKernels, AgreeWithThePrecompiledOnes) {
  for (const Shape& shape :
       {Shape{1, 64, 128, 4, 2}, Shape{1, 1, 1, 1, 1}, Shape{130, 256, 128, 16, 1},
        Shape{33, 96, 160, 5, 5}, Shape{65, 33, 47, 3, 2}, Shape{5, 128, 64, 64, 8},
        Shape{1300, 64, 96, 8, 2}, Shape{40, 64, 64, 1024, 40}, Shape{300, 128, 64, 256, 8},
        Shape{24, 2048, 768, 128, 8}}) {
    check<BFloat16>(shape, {0, 1});
    if (HasFatalFailure()) return;
    check<float>(shape, {0, 1});
    if (HasFatalFailure()) return;
  }
}

TEST_F(CudaLayerKernels, AgreeOnSkewedRoutingAndTies) {
  check<BFloat16>({700, 64, 64, 8, 2}, {0}, true);
  check<BFloat16>({257, 64, 64, 128, 8}, {0}, true);
  check<float>({50, 64, 64, 1000, 22}, {0}, true);
}

// More blocks than one part of the scan over blocks, and several tokens per warp.
TEST_F(CudaLayerKernels, AgreeOnManyTokens) {
  check<BFloat16>({20000, 64, 64, 128, 8});
  check<BFloat16>({70001, 8, 8, 8, 2});
}

TEST_F(CudaLayerKernels, SayWhereTheyComeFrom) {
  const Problem problem{{16, 64, 64, 4, 2}, DType::kBF16};
  EXPECT_EQ(make_precompiled_kernels(problem, device().facts())->describe(), "precompiled kernels");
  const std::string text = make_specialised_kernels(problem, device().facts(), "off")->describe();
  EXPECT_NE(text.find("NVRTC " + nvrtc_version()), std::string::npos) << text;
  EXPECT_NE(text.find("compiled in"), std::string::npos) << text;
}

}  // namespace
}  // namespace moe::cuda
