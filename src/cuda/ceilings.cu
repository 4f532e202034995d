#include "cuda/ceilings.h"

#include <algorithm>
#include <optional>

#include "core/check.h"
#include "core/memory.h"
#include "cuda/check.h"
#include "cuda/ops/fill.h"
#include "cuda/ops/gemm_cublaslt.h"
#include "cuda/recorded_graph.h"

namespace moe::cuda {
namespace {

// Square GEMMs of about a millisecond: large enough that neither their launch nor their last wave of
// tiles counts. fp32 has no tensor cores and takes an eighth of the work.
constexpr std::int64_t kSize = 8192;
constexpr std::int64_t kSizeF32 = 4096;
constexpr std::size_t kLeastMemory = std::size_t{1} << 30;
constexpr std::size_t kMemoryOfCache = 16;  // times the L2 cache, so that hardly a read hits it
static_assert(kSizeF32 * kSizeF32 * 4 <= kSize * kSize * 2, "the operands share memory");

double flops(std::int64_t size) {
  return 2.0 * static_cast<double>(size) * static_cast<double>(size) * static_cast<double>(size);
}

class CudaProbes final : public CeilingProbes {
 public:
  CudaProbes(CudaDevice& device, Stopwatch& stopwatch)
      : device_(device),
        stopwatch_(stopwatch),
        a_(kSize * kSize * 2),
        w_(kSize * kSize * 2),
        c_(kSize * kSize * 2),
        memory_(round_up(std::max(kLeastMemory, kMemoryOfCache * device.facts().l2_bytes), 512)),
        sink_(sizeof(unsigned)),
        fp32_(library_, {.n = kSizeF32, .k = kSizeF32, .in = DType::kF32, .out = DType::kF32}),
        bf16_(library_, {.n = kSize, .k = kSize, .in = DType::kBF16, .out = DType::kBF16}),
        fp8_(library_, {.n = kSize, .k = kSize, .e4m3 = true, .out = DType::kBF16}) {
    empty_.emplace(device.stream(), [&] { launch_empty(device.stream()); });
    MOE_CUDA_CHECK(cudaMemsetAsync(memory_.data(), 0x3f, memory_.size(), device.stream()));
    ProbeSamples unused;
    sample(unused);  // loads the library's kernels
  }

  void sample(ProbeSamples& samples) override {
    fill(DType::kF32);
    samples.fp32.push_back(gemm_rate(fp32_, kSizeF32));
    fill(DType::kBF16);
    samples.bf16.push_back(gemm_rate(bf16_, kSize));
    for (const DeviceBuffer* buffer : {&a_, &w_}) {
      fill_normal_e4m3(buffer->data(), kSize * kSize, 1, 1, device_.stream());
    }
    samples.fp8.push_back(gemm_rate(fp8_, kSize));
    const auto bytes = static_cast<double>(memory_.size());
    samples.read.push_back(bytes / 1e9 / seconds([&] {
                             read_memory(memory_.data(), memory_.size(), sink_.as<unsigned>(),
                                         device_.stream());
                           }));
    const std::size_t half = memory_.size() / 2;
    samples.copy.push_back(bytes / 1e9 / seconds([&] {
                             MOE_CUDA_CHECK(
                                 cudaMemcpyAsync(memory_.as<std::byte>() + half, memory_.data(),
                                                 half, cudaMemcpyDeviceToDevice, device_.stream()));
                           }));
    samples.empty_us.push_back(1e6 * seconds([&] { empty_->launch(); }));
  }
  [[nodiscard]] std::string isa() const override {
    return fmt::format("sm_{}{}", device_.facts().major, device_.facts().minor);
  }
  [[nodiscard]] int threads() const override { return 0; }

 private:
  void fill(DType dtype) {
    const std::int64_t count = kSize * kSize * 2 / static_cast<std::int64_t>(size_of(dtype));
    fill_normal(dtype, a_.data(), count, 1, 1, device_.stream());
    fill_normal(dtype, w_.data(), count, 1, 2, device_.stream());
  }
  double seconds(const std::function<void()>& work) {
    return stopwatch_.milliseconds(work, {Cache::kHot, Launch::kGraph}) * 1e-3;
  }
  double gemm_rate(Matmul& gemm, std::int64_t size) {
    const auto run = [&] { gemm.run(a_.data(), w_.data(), c_.data(), size, device_.stream()); };
    return flops(size) / 1e9 / seconds(run);
  }

  CudaDevice& device_;
  Stopwatch& stopwatch_;
  CublasLt library_;
  DeviceBuffer a_, w_, c_;
  DeviceBuffer memory_;
  DeviceBuffer sink_;
  Matmul fp32_;
  Matmul bf16_;
  Matmul fp8_;
  std::optional<RecordedGraph> empty_;
};

}  // namespace

std::unique_ptr<CeilingProbes> make_ceiling_probes(CudaDevice& device, Stopwatch& stopwatch) {
  return std::make_unique<CudaProbes>(device, stopwatch);
}

}  // namespace moe::cuda
