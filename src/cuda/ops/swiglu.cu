#include "cuda/ops/swiglu.h"

#include "cuda/check.h"
#include "cuda/device/element.cuh"
#include "cuda/device/overlap.cuh"
#include "cuda/device/swiglu.cuh"
#include "cuda/launch.h"

namespace moe::cuda {
namespace {

constexpr int kThreads = 256;

unsigned blocks_for(std::int64_t work) {
  return static_cast<unsigned>((work + kThreads - 1) / kThreads);
}

__device__ __forceinline__ std::int64_t thread_in_grid() {
  return static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
}

struct Silu {
  template <class Element>
  __device__ static float apply(float value, float) {
    return silu<Element>(value);
  }
};
struct Multiply {
  template <class Element>
  __device__ static float apply(float a, float b) {
    return a * b;
  }
};

/// out[r,i] = Function(a[r,i], b[r,i]), kWidth elements a thread.
template <class Element, int kWidth, class Function>
__global__ void __launch_bounds__(kThreads)
    elementwise_kernel(const Element* a, const Element* b, std::int64_t rows, std::int64_t columns,
                       std::int64_t stride, Element* out) {
  using Vector = Vec<Element, kWidth>;
  const std::int64_t vector = thread_in_grid();
  const std::int64_t in_a_row = columns / kWidth;
  const std::int64_t row = rows == 1 ? 0 : vector / in_a_row;
  if (row >= rows || vector - row * in_a_row >= in_a_row) return;
  const std::int64_t at = row * stride + (vector - row * in_a_row) * kWidth;
  const Vector left = *reinterpret_cast<const Vector*>(a + at);
  const Vector right = *reinterpret_cast<const Vector*>(b + at);
  Vector result;
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    result.set(i, Function::template apply<Element>(left.get(i), right.get(i)));
  }
  *reinterpret_cast<Vector*>(out + at) = result;
}

template <class Function>
void elementwise(DType dtype, const void* a, const void* b, std::int64_t rows, std::int64_t columns,
                 std::int64_t stride, void* out, cudaStream_t stream) {
  with_device_type(dtype, [&]<class Element>() {
    const auto launch = [&]<int kWidth>() {
      elementwise_kernel<Element, kWidth, Function>
          <<<blocks_for(rows * (columns / kWidth)), kThreads, 0, stream>>>(
              static_cast<const Element*>(a), static_cast<const Element*>(b), rows, columns, stride,
              static_cast<Element*>(out));
    };
    constexpr auto kBytes = static_cast<std::int64_t>(sizeof(Element));
    const bool aligned_rows = rows == 1 || stride * kBytes % 16 == 0;
    if (in_widest_vectors(columns * kBytes, {a, b, out}) && aligned_rows) {
      launch.template operator()<kWidest<Element>>();
    } else {
      launch.template operator()<1>();
    }
  });
  MOE_CUDA_CHECK_LAUNCH("elementwise_kernel");
}

template <class Element, int kWidth, int kUnroll>
__global__ void __launch_bounds__(kThreads)
    swiglu_rows_kernel(const Element* gate_up, std::int64_t rows, std::int64_t intermediate,
                       Element* act, std::int64_t act_stride) {
  wait_for_previous_kernel();
  allow_next_kernel();
  swiglu_of_rows<Element, kWidth, kUnroll, kThreads>(gate_up, rows, intermediate, act, act_stride);
}

}  // namespace

void silu(DType dtype, const void* gate, std::int64_t count, void* out, cudaStream_t stream) {
  silu_rows(dtype, gate, 1, count, count, out, stream);
}

void multiply(DType dtype, const void* a, const void* b, std::int64_t count, void* out,
              cudaStream_t stream) {
  multiply_rows(dtype, a, b, 1, count, count, out, stream);
}

void silu_rows(DType dtype, const void* gate, std::int64_t rows, std::int64_t columns,
               std::int64_t stride, void* out, cudaStream_t stream) {
  elementwise<Silu>(dtype, gate, gate, rows, columns, stride, out, stream);
}

void multiply_rows(DType dtype, const void* a, const void* b, std::int64_t rows,
                   std::int64_t columns, std::int64_t stride, void* out, cudaStream_t stream) {
  elementwise<Multiply>(dtype, a, b, rows, columns, stride, out, stream);
}

void swiglu_rows(DType dtype, const void* gate_up, std::int64_t rows, std::int64_t intermediate,
                 void* act, std::int64_t act_stride, cudaStream_t stream) {
  with_device_type(dtype, [&]<class Element>() {
    const auto launch = [&]<int kWidth>() {
      constexpr int kUnroll = 2;
      const std::int64_t vectors = rows * (intermediate / kWidth);
      launch_overlapping("swiglu_rows_kernel", swiglu_rows_kernel<Element, kWidth, kUnroll>,
                         dim3(blocks_for((vectors + kUnroll - 1) / kUnroll)), dim3(kThreads), 0,
                         stream, static_cast<const Element*>(gate_up), rows, intermediate,
                         static_cast<Element*>(act), act_stride);
    };
    constexpr auto kBytes = static_cast<std::int64_t>(sizeof(Element));
    if (in_widest_vectors(intermediate * kBytes, {gate_up, act}) && act_stride * kBytes % 16 == 0) {
      launch.template operator()<kWidest<Element>>();
    } else {
      launch.template operator()<1>();
    }
  });
}

}  // namespace moe::cuda
