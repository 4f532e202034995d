// The activation between the up and the down projection, on stored gate and up.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "moe/config.h"

namespace moe::cuda {

/// out[i] = silu(gate[i]) for `count` elements; what a framework runs before multiply().
void silu(DType dtype, const void* gate, std::int64_t count, void* out, cudaStream_t stream);
/// out[i] = a[i] · b[i].
void multiply(DType dtype, const void* a, const void* b, std::int64_t count, void* out,
              cudaStream_t stream);

/// The same of `rows` rows of `columns` elements, all tensors `stride` elements from row to row; out
/// may be gate or a.
void silu_rows(DType dtype, const void* gate, std::int64_t rows, std::int64_t columns,
               std::int64_t stride, void* out, cudaStream_t stream);
void multiply_rows(DType dtype, const void* a, const void* b, std::int64_t rows,
                   std::int64_t columns, std::int64_t stride, void* out, cudaStream_t stream);

/// act[r,i] = silu(gate_up[r,i]) · gate_up[r,I+i], rows of gate_up 2·I wide and of act `act_stride`
/// elements apart. act may be gate_up itself with stride 2·I: every element is read by the thread
/// that overwrites it.
void swiglu_rows(DType dtype, const void* gate_up, std::int64_t rows, std::int64_t intermediate,
                 void* act, std::int64_t act_stride, cudaStream_t stream);

}  // namespace moe::cuda
