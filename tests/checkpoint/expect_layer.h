// What a loaded layer must hold.
#pragma once

#include <gtest/gtest.h>

#include <vector>

#include "checkpoint/load.h"
#include "checkpoint/write_layer.h"
#include "core/scalar.h"

namespace moe::test {

inline std::vector<float> floats(const Tensor& tensor) {
  std::vector<float> values;
  for (std::int64_t i = 0; i < tensor.view().elements(); ++i) {
    values.push_back(tensor.view().dtype == DType::kF32 ? tensor.as<float>()[i]
                                                        : to_float(tensor.as<BFloat16>()[i]));
  }
  return values;
}

inline void expect_experts(const checkpoint::LayerContents& contents, const Block& b) {
  EXPECT_EQ(floats(contents.weights.router), b.router);
  EXPECT_EQ(floats(contents.weights.gate), b.gate);
  EXPECT_EQ(floats(contents.weights.up), b.up);
  EXPECT_EQ(floats(contents.weights.down), b.down);
}

}  // namespace moe::test
