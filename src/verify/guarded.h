// A tensor between two zones of known bytes, so that a write outside of it is seen; and its like on a
// device.
#pragma once

#include <cstddef>
#include <memory>

#include "core/backend.h"
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
  friend class GuardedMirror;
  [[nodiscard]] std::size_t begin() const;  // of the tensor, within buffer_

  HostBuffer buffer_;
  TensorView view_;
};

/// A guarded tensor where a device computes: the tensor itself on the host; else a copy on the device,
/// zones and alignment included.
class GuardedMirror {
 public:
  /// A copy of `tensor` as it is now. Both arguments outlive it.
  GuardedMirror(Device& device, GuardedTensor& tensor);

  [[nodiscard]] const TensorView& view() const { return view_; }
  /// Everything from the host to the device, and back.
  void upload();
  void download();

 private:
  Device* device_;
  GuardedTensor* tensor_;
  std::shared_ptr<void> memory_;  // null on the host
  TensorView view_;
};

}  // namespace moe
