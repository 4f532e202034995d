// A tensor between two zones of known bytes, so that a write outside of it is seen.
#pragma once

#include <cstddef>

#include "core/memory.h"
#include "moe/tensor.h"

namespace moe {

class GuardedTensor {
 public:
  /// A copy of `source`. Element 0 lies `offset_elements` after a cache-line boundary: views need
  /// not be aligned beyond their element.
  explicit GuardedTensor(const TensorView& source, std::int64_t offset_elements = 0);

  [[nodiscard]] const TensorView& view() const { return view_; }
  /// Bytes of the two zones that no longer hold what the constructor wrote.
  [[nodiscard]] std::int64_t damaged_bytes() const;

 private:
  [[nodiscard]] std::size_t begin() const;  // of the tensor, within buffer_

  HostBuffer buffer_;
  TensorView view_;
};

}  // namespace moe
