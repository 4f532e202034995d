// Errors, owners and the device as Layer sees it.
#include <functional>

#include "core/workload.h"
#include "cuda/device_test.h"
#include "moe/error.h"

namespace moe::cuda {
namespace {

struct Refusal {
  ErrorCode code = ErrorCode::kInternal;
  std::string message;
  std::uint64_t bytes = 0;
};

Refusal refusal_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    return {error.code(), error.what(), error.bytes_needed()};
  }
  ADD_FAILURE() << "nothing was refused";
  return {};
}

const Problem kProblem{.shape = {16, 32, 48, 4, 2}, .dtype = DType::kBF16};

class CudaBackend : public CudaTest {
 protected:
  /// Weights on the device.
  void SetUp() override {
    CudaTest::SetUp();
    if (IsSkipped()) return;
    const OwnedWeights host = make_weights(kProblem, 1);
    view_ = {upload(host.router), upload(host.gate), upload(host.up), upload(host.down)};
  }
  TensorView upload(const Tensor& tensor) {
    TensorView view = tensor.view();
    buffers_.emplace_back(view.bytes());
    view.data = buffers_.back().data();
    device().copy_from_host(view.data, tensor.view().data, view.bytes());
    return view;
  }
  std::vector<DeviceBuffer> buffers_;
  Weights view_;
  LayerOptions options_{.level = "grouped", .backend = Backend::kCuda, .problem = kProblem};
};

TEST_F(CudaBackend, ChecksThrowWithFileAndLineAndLeaveNoError) {
  const Refusal refusal = refusal_of([] { MOE_CUDA_CHECK(cudaSetDevice(-1)); });
  EXPECT_EQ(refusal.code, ErrorCode::kCuda);
  EXPECT_NE(refusal.message.find("cudaErrorInvalidDevice"), std::string::npos) << refusal.message;
  EXPECT_NE(refusal.message.find("cudaSetDevice(-1) at tests/cuda/test_backend.cpp:"),
            std::string::npos)
      << refusal.message;
  EXPECT_EQ(cudaPeekAtLastError(), cudaSuccess);
  MOE_CUDA_CHECK_NOTHROW(cudaSetDevice(-1));
  EXPECT_EQ(cudaPeekAtLastError(), cudaSuccess);
}

TEST_F(CudaBackend, ARefusedAllocationSaysWhatIsFreeAndHurtsNothing) {
  constexpr std::size_t kTooMuch = std::size_t{1} << 50;
  const Refusal refusal = refusal_of([] { const DeviceBuffer buffer(kTooMuch); });
  EXPECT_EQ(refusal.code, ErrorCode::kOutOfMemory);
  EXPECT_EQ(refusal.bytes, kTooMuch);
  EXPECT_NE(refusal.message.find("are free"), std::string::npos);
  EXPECT_EQ(cudaPeekAtLastError(), cudaSuccess);
  const DeviceBuffer small(1 << 20);
  EXPECT_NE(small.data(), nullptr);
}

TEST_F(CudaBackend, FactsComeFromTheDevice) {
  const DeviceFacts& facts = device().facts();
  EXPECT_FALSE(facts.name.empty());
  EXPECT_GT(facts.multiprocessors, 0);
  EXPECT_GT(facts.l2_bytes, 0U);
  EXPECT_GE(facts.shared_bytes_per_block, 48U << 10);
  EXPECT_GE(facts.driver_version, facts.runtime_version);
  EXPECT_LE(device().available_memory(), facts.memory_bytes);
}

TEST_F(CudaBackend, PredictsAGatherThatTheDeviceCannotHold) {
  options_.level = "batched";
  options_.problem.shape = {1 << 20, 4096, 14336, 8, 2};
  const std::uint64_t needed = Layer::predict(options_).total();
  EXPECT_GT(needed, std::uint64_t{224} << 40);  // 2^21 rows x 4096 x 14336 x 2 bytes
  EXPECT_LT(needed, std::uint64_t{226} << 40);
  options_.problem = kProblem;
  options_.workspace_limit = 1;
  const Refusal refusal = refusal_of([&] { Layer::create(options_, view_); });
  EXPECT_EQ(refusal.code, ErrorCode::kOutOfMemory);
  EXPECT_EQ(refusal.bytes, Layer::predict(options_).total());
}

TEST_F(CudaBackend, RefusesHostMemory) {
  const OwnedWeights host = make_weights(kProblem, 1);
  Weights wrong = view_;
  wrong.up = host.up.view();
  const Refusal refusal = refusal_of([&] { Layer::create(options_, wrong); });
  EXPECT_EQ(refusal.code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(refusal.message,
            "weights.up bf16[4,48,32] is host memory, but the CUDA backend needs device memory");
  Layer layer = Layer::create(options_, view_);
  const Tensor x = make_input(kProblem, 1, 0);
  const TensorView y = upload(Tensor(DType::kBF16, {16, 32}));
  EXPECT_EQ(refusal_of([&] { layer.forward(x.view(), y); }).code, ErrorCode::kInvalidArgument);
  layer.forward(upload(x), y);  // still usable
}

TEST_F(CudaBackend, RefusesMoreExpertsThanTheRoutingKernelsHold) {
  options_.problem.shape.experts = 1025;
  const Refusal refusal = refusal_of([&] { static_cast<void>(Layer::predict(options_)); });
  EXPECT_EQ(refusal.code, ErrorCode::kUnsupported);
  EXPECT_NE(refusal.message.find("1025"), std::string::npos);
}

TEST_F(CudaBackend, ACallersStreamGetsTheSameBits) {
  const TensorView x = upload(make_input(kProblem, 1, 0));
  const TensorView y = upload(Tensor(DType::kBF16, {16, 32}));
  Layer own = Layer::create(options_, view_);
  own.forward(x, y);
  Tensor first(DType::kBF16, {16, 32});
  device().copy_to_host(first.view().data, y.data, y.bytes());

  const Stream stream;
  options_.stream = stream.get();
  Layer layer = Layer::create(options_, view_);
  MOE_CUDA_CHECK(cudaMemsetAsync(y.data, 0xff, y.bytes(), stream.get()));
  layer.forward(x, y);
  MOE_CUDA_CHECK(cudaStreamSynchronize(stream.get()));
  Tensor second(DType::kBF16, {16, 32});
  device().copy_to_host(second.view().data, y.data, y.bytes());
  EXPECT_EQ(std::memcmp(first.view().data, second.view().data, y.bytes()), 0);
}

}  // namespace
}  // namespace moe::cuda
