#include "cuda/ops/fill.h"

#include <cuda_fp8.h>

#include <algorithm>

#include "core/fingerprint.h"
#include "cuda/check.h"
#include "cuda/device/element.cuh"

namespace moe::cuda {
namespace {

constexpr int kThreads = 256;
constexpr std::int64_t kMostBlocks = 4096;

template <class Element>
__device__ Element element_of(float value) {
  if constexpr (sizeof(Element) == 1) {
    return Element(value);
  } else {
    return from_float<Element>(value);
  }
}

/// A pair of values a step, by Box-Muller on two uniforms from 64 mixed bits.
template <class Element>
__global__ void __launch_bounds__(kThreads)
    fill_normal_kernel(Element* out, std::int64_t count, float deviation, std::uint64_t seed) {
  const std::int64_t stride = static_cast<std::int64_t>(gridDim.x) * kThreads;
  for (std::int64_t pair = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
       2 * pair < count; pair += stride) {
    const std::uint64_t bits = fingerprint_term(seed, static_cast<std::uint64_t>(pair));
    constexpr float kUnit = 1.0F / 4294967296.0F;
    const float first = (static_cast<float>(static_cast<std::uint32_t>(bits)) + 0.5F) * kUnit;
    const float second = static_cast<float>(static_cast<std::uint32_t>(bits >> 32)) * kUnit;
    const float radius = deviation * sqrtf(-2.0F * logf(fminf(first, 1.0F)));
    float sine = 0;
    float cosine = 0;
    sincospif(2.0F * second, &sine, &cosine);
    out[2 * pair] = element_of<Element>(radius * cosine);
    if (2 * pair + 1 < count) out[2 * pair + 1] = element_of<Element>(radius * sine);
  }
}

template <class Element>
void launch_fill(void* out, std::int64_t count, float deviation, std::uint64_t seed,
                 cudaStream_t stream) {
  if (count == 0) return;
  const std::int64_t pairs = (count + 1) / 2;
  const auto blocks =
      static_cast<unsigned>(std::min(kMostBlocks, (pairs + kThreads - 1) / kThreads));
  fill_normal_kernel<<<blocks, kThreads, 0, stream>>>(static_cast<Element*>(out), count, deviation,
                                                      seed);
  MOE_CUDA_CHECK_LAUNCH("fill_normal_kernel");
}

}  // namespace

void fill_normal(DType dtype, void* out, std::int64_t count, float deviation, std::uint64_t seed,
                 cudaStream_t stream) {
  with_device_type(
      dtype, [&]<class Element>() { launch_fill<Element>(out, count, deviation, seed, stream); });
}

void fill_normal_e4m3(void* out, std::int64_t count, float deviation, std::uint64_t seed,
                      cudaStream_t stream) {
  launch_fill<__nv_fp8_e4m3>(out, count, deviation, seed, stream);
}

}  // namespace moe::cuda
