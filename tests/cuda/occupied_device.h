// Multiprocessors that are taken by something else for as long as a test likes.
#pragma once

#include "cuda/backend.h"

namespace moe::cuda {

class OccupiedDevice {
 public:
  /// Blocks that take all shared memory of a multiprocessor each run on `multiprocessors` of them when
  /// this returns, until the object goes; at most 30 seconds, so that a test that fails ends.
  explicit OccupiedDevice(int multiprocessors);
  ~OccupiedDevice();
  OccupiedDevice(const OccupiedDevice&) = delete;
  OccupiedDevice& operator=(const OccupiedDevice&) = delete;

  [[nodiscard]] bool holds() const;  ///< whether the blocks still run

 private:
  Stream stream_;
  PinnedBuffer flags_;  // [0] blocks that have started, [1] whether to end
};

}  // namespace moe::cuda
