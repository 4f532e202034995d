// The dense twin of a problem: what plain library GEMMs take for the layer's arithmetic.
#pragma once

#include <memory>

#include "core/instrument.h"
#include "cuda/backend.h"

namespace moe::cuda {

[[nodiscard]] std::uint64_t dense_twin_bytes(const Problem& problem);

/// A recorded graph of [T·K,H]x[H,2I] and [T·K,I]x[I,H] through cuBLASLt, on normal data scaled like
/// the layer's: as if all rows went to one expert, without routing, permutation and activation.
[[nodiscard]] std::unique_ptr<Replay> make_dense_twin(CudaDevice& device, const Problem& problem);

}  // namespace moe::cuda
