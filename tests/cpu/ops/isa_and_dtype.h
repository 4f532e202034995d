// Tests that run for every instruction set of this machine and both dtypes.
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <tuple>

#include "../isa/gemm_case.h"
#include "cpu/isa/kernels.h"

namespace moe::cpu {

class IsaAndDType : public testing::TestWithParam<std::tuple<Isa, DType>> {
 protected:
  [[nodiscard]] Isa isa() const { return std::get<0>(GetParam()); }
  [[nodiscard]] DType dtype() const { return std::get<1>(GetParam()); }
  [[nodiscard]] const GemmKernels& gemm() const { return kernels_for(isa()).gemm(dtype()); }
};

inline std::string isa_and_dtype_name(
    const testing::TestParamInfo<std::tuple<Isa, DType>>& parameters) {
  return std::string(name_of(std::get<0>(parameters.param))) + "_" +
         std::string(name_of(std::get<1>(parameters.param)));
}

}  // namespace moe::cpu

#define MOE_INSTANTIATE_ISA_AND_DTYPE(Suite)                                      \
  INSTANTIATE_TEST_SUITE_P(                                                       \
      Tiers, Suite,                                                               \
      testing::Combine(testing::ValuesIn(available_isas()),                       \
                       testing::Values(::moe::DType::kF32, ::moe::DType::kBF16)), \
      ::moe::cpu::isa_and_dtype_name)
