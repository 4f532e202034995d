// One layer's weights out of a checkpoint, in the layout and the type that the levels take.
#pragma once

#include "checkpoint/layer_plan.h"
#include "core/workload.h"

namespace moe::checkpoint {

/// Everything the plan consumes. Tensors that the layer does not have are empty (rank 0). Quantised
/// values are multiplied out in fp32, then all are rounded to the dtype asked for.
struct LayerContents {
  OwnedWeights weights;  ///< matrices of the dtype, biases of fp32
  /// Whether every value is what the checkpoint stores, without a rounding to the dtype.
  bool exact = true;
};

/// Throws what plan.check_complete() throws, and Error(kIo) naming the tensor and the place for a
/// value that is NaN or infinite, or becomes infinite in the dtype, and for a scale that is not
/// finite and above 0. Memory: the contents, and of the files at most one expert a thread.
[[nodiscard]] LayerContents load_layer(const LayerPlan& plan, DType dtype);

/// A matrix as it is stored, in the given dtype; for files of inputs and outputs. Throws Error(kIo)
/// unless it is F32, BF16 or F16 and finite.
[[nodiscard]] Tensor load_tensor(const Located& at, DType dtype);

}  // namespace moe::checkpoint
