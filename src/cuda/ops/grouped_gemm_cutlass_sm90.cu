#include "cuda/ops/grouped_gemm_cutlass.h"

#include <fmt/format.h>

#include "core/check.h"
#include "core/memory.h"
#include "cuda/check.h"

#ifndef MOE_CUTLASS_MISSING
#include <cutlass/cutlass.h>
#include <cutlass/version.h>

#include <cutlass/gemm/device/gemm_universal_adapter.h>
#include <cute/tensor.hpp>
#include <cutlass/epilogue/collective/collective_builder.hpp>
#include <cutlass/gemm/collective/collective_builder.hpp>
#include <cutlass/gemm/group_array_problem_shape.hpp>
#include <cutlass/gemm/kernel/gemm_universal.hpp>
#endif

namespace moe::cuda {

#ifndef MOE_CUTLASS_MISSING

namespace {

constexpr int kAlignment = kTensorMapAlignment / sizeof(cutlass::bfloat16_t);

/// The kernel for one tile, seen from the library: M = features (n), N = rows of A, K = k. The weights
/// lie on the tensor core's 64-row side, so that a tile may have as few rows as a group has. C is
/// written as its transpose, whose columns are the rows of A.
template <bool kIsPingpong, int kFeatures, int kRows>
struct Instance {
  using Element = cutlass::bfloat16_t;
  using Tile = cute::Shape<cute::Int<kFeatures>, cute::Int<kRows>, cute::_64>;
  using Cluster = cute::Shape<cute::Int<kCutlassCluster>, cute::_1, cute::_1>;
  using LayoutW = cutlass::layout::RowMajor;
  using LayoutA = cutlass::layout::ColumnMajor;
  using LayoutC = cutlass::layout::ColumnMajor;
  using Schedule =
      std::conditional_t<kIsPingpong, cutlass::gemm::KernelPtrArrayTmaWarpSpecializedPingpong,
                         cutlass::gemm::KernelPtrArrayTmaWarpSpecializedCooperative>;
  using EpilogueSchedule =
      std::conditional_t<kIsPingpong, cutlass::epilogue::PtrArrayTmaWarpSpecializedPingpong,
                         cutlass::epilogue::PtrArrayTmaWarpSpecializedCooperative>;
  using Epilogue = typename cutlass::epilogue::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, Tile, Cluster,
      cutlass::epilogue::collective::EpilogueTileAuto, float, float, void, LayoutC*, kAlignment,
      Element, LayoutC*, kAlignment, EpilogueSchedule,
      cutlass::epilogue::fusion::LinearCombination<Element, float>>::CollectiveOp;
  using Mainloop = typename cutlass::gemm::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, Element, LayoutW*, kAlignment, Element,
      LayoutA*, kAlignment, float, Tile, Cluster,
      cutlass::gemm::collective::StageCountAutoCarveout<static_cast<int>(
          sizeof(typename Epilogue::SharedStorage))>,
      Schedule>::CollectiveOp;
  using Sizes = cutlass::gemm::GroupProblemShape<cute::Shape<int, int, int>>;
  using Gemm = cutlass::gemm::device::GemmUniversalAdapter<
      cutlass::gemm::kernel::GemmUniversal<Sizes, Mainloop, Epilogue>>;
};
using Cooperative256x128 = Instance<false, 256, 128>::Gemm;
using Cooperative256x192 = Instance<false, 256, 192>::Gemm;
using Pingpong128x192 = Instance<true, 128, 192>::Gemm;

// The types of the arguments are the same for all tiles.
using StrideW = Cooperative256x128::GemmKernel::InternalStrideA;
using StrideA = Cooperative256x128::GemmKernel::InternalStrideB;
using StrideC = Cooperative256x128::GemmKernel::InternalStrideD;

/// What the kernels read about the groups, [groups] each. Views: CutlassGemm owns the memory.
struct GroupArrays {
  cute::Shape<int, int, int>* sizes = nullptr;
  const cutlass::bfloat16_t** w = nullptr;
  const cutlass::bfloat16_t** a = nullptr;
  cutlass::bfloat16_t** c = nullptr;
  StrideW* w_stride = nullptr;
  StrideA* a_stride = nullptr;
  StrideC* c_stride = nullptr;
};

/// Tensor maps of each multiprocessor: W, A and C of two warpgroups.
std::uint64_t tensor_map_bytes(const DeviceFacts& facts) {
  return static_cast<std::uint64_t>(facts.multiprocessors) * 4 * sizeof(cute::TmaDescriptor);
}

struct Layout {
  GroupArrays arrays;
  std::byte* tensor_maps = nullptr;
};

template <class Memory>
Layout carve(Memory& memory, std::int64_t groups, const DeviceFacts& facts) {
  const auto take = [&]<class Element>(Element*& array) {
    array = memory.template take<Element>(groups);
  };
  Layout layout;
  take(layout.arrays.sizes);
  take(layout.arrays.w);
  take(layout.arrays.a);
  take(layout.arrays.c);
  take(layout.arrays.w_stride);
  take(layout.arrays.a_stride);
  take(layout.arrays.c_stride);
  layout.tensor_maps =
      memory.template take<std::byte>(static_cast<std::int64_t>(tensor_map_bytes(facts)));
  return layout;
}

/// One product's part of describe_groups_kernel.
struct GroupSource {
  GroupArrays to;
  CutlassGemmSpec spec;
  CutlassGemm::Operands operands;
};

constexpr int kDescribeThreads = 128;

/// blockIdx.y chooses the product, a thread describes one group.
__global__ void __launch_bounds__(kDescribeThreads)
    describe_groups_kernel(const std::int32_t* __restrict__ offsets, GroupSource first,
                           GroupSource second) {
  const GroupSource& source = blockIdx.y == 0 ? first : second;
  const CutlassGemmSpec& spec = source.spec;
  const std::int64_t group = static_cast<std::int64_t>(blockIdx.x) * kDescribeThreads + threadIdx.x;
  if (group >= spec.groups) return;
  const std::int64_t row = offsets[group];
  const int rows = offsets[group + 1] - static_cast<int>(row);
  const auto* const a = static_cast<const cutlass::bfloat16_t*>(source.operands.a);
  const bool shared = group >= source.operands.shared_first;
  const auto* const w = static_cast<const cutlass::bfloat16_t*>(shared ? source.operands.shared_w
                                                                       : source.operands.w);
  const std::int64_t matrix = shared ? group - source.operands.shared_first : group;
  auto* const c = static_cast<cutlass::bfloat16_t*>(source.operands.c);
  const GroupArrays& to = source.to;
  to.sizes[group] = cute::make_shape(static_cast<int>(spec.n), rows, static_cast<int>(spec.k));
  to.w[group] = w + matrix * spec.n * spec.k;
  to.a[group] = a + row * spec.a_stride;
  to.c[group] = c + row * spec.c_stride;
  cute::get<0>(to.w_stride[group]) = spec.k;
  cute::get<0>(to.a_stride[group]) = spec.a_stride;
  cute::get<1>(to.c_stride[group]) = spec.c_stride;
}

void check(cutlass::Status status, const char* step) {
  if (status == cutlass::Status::kSuccess) return;
  fail(ErrorCode::kCuda, "CUTLASS: {}: {}", step, cutlassGetStatusString(status));
}

/// The library's launch parameters for one tile; they hold no size of any group.
template <class Gemm>
class Launch {
 public:
  Launch(const CutlassGemmSpec& spec, const Layout& memory, const DeviceFacts& facts) {
    typename Gemm::Arguments arguments;
    arguments.mode = cutlass::gemm::GemmUniversalMode::kGrouped;
    // No sizes on the host: the grid is then one block a multiprocessor, whatever the groups are.
    arguments.problem_shape = {static_cast<int>(spec.groups), memory.arrays.sizes, nullptr};
    arguments.mainloop = {memory.arrays.w, memory.arrays.w_stride, memory.arrays.a,
                          memory.arrays.a_stride};
    arguments.epilogue = {{}, nullptr, nullptr, memory.arrays.c, memory.arrays.c_stride};
    arguments.epilogue.thread.alpha = 1;
    arguments.epilogue.thread.beta = 0;
    arguments.hw_info.device_id = facts.ordinal;
    arguments.hw_info.sm_count = facts.multiprocessors;
    // Row tiles of one block of features run side by side: the weights come from memory once.
    arguments.scheduler.raster_order = Gemm::GemmKernel::TileScheduler::RasterOrderOptions::AlongN;
    const std::size_t needed = Gemm::get_workspace_size(arguments);
    MOE_INTERNAL_CHECK(needed <= tensor_map_bytes(facts), "tensor maps take {} bytes, not {}",
                       needed, tensor_map_bytes(facts));
    check(Gemm::can_implement(arguments), "can_implement");
    check(gemm_.initialize(arguments, memory.tensor_maps), "initialize");
  }
  void run(cudaStream_t stream) { check(gemm_.run(stream), "run"); }

 private:
  Gemm gemm_;
};

}  // namespace

std::string cutlass_unsupported(const CutlassGemmSpec& spec) {
  for (const std::int64_t size : {spec.n, spec.k, spec.a_stride, spec.c_stride}) {
    if (size % kAlignment != 0) {
      return fmt::format(
          "the tensor maps of the grouped GEMM need rows of a multiple of 16 bytes: {} bf16 "
          "elements are none",
          size);
    }
  }
  if (spec.n > INT32_MAX || spec.k > INT32_MAX || spec.groups > INT32_MAX) {
    return fmt::format("n={} k={} groups={}: the grouped GEMM takes 32-bit sizes", spec.n, spec.k,
                       spec.groups);
  }
  return {};
}

std::string cutlass_version() {
  return fmt::format("CUTLASS {}.{}.{}", CUTLASS_MAJOR, CUTLASS_MINOR, CUTLASS_PATCH);
}

struct CutlassGemm::State {
  State(const CutlassGemmSpec& given, const DeviceFacts& facts)
      : spec(given),
        memory(CutlassGemm::device_bytes(given.groups, facts)),
        layout([&] {
          Arena arena(memory.as<std::byte>(), memory.size());
          return carve(arena, given.groups, facts);
        }()),
        cooperative_256x128(spec, layout, facts),
        cooperative_256x192(spec, layout, facts),
        pingpong_128x192(spec, layout, facts) {}
  CutlassGemmSpec spec;
  DeviceBuffer memory;
  Layout layout;
  Launch<Cooperative256x128> cooperative_256x128;
  Launch<Cooperative256x192> cooperative_256x192;
  Launch<Pingpong128x192> pingpong_128x192;
};

CutlassGemm::CutlassGemm(const CutlassGemmSpec& spec, const DeviceFacts& facts) {
  if (const std::string reason = cutlass_unsupported(spec); !reason.empty()) {
    throw Error(ErrorCode::kUnsupported, reason);
  }
  state_ = std::make_unique<State>(spec, facts);
}
CutlassGemm::CutlassGemm(CutlassGemm&&) noexcept = default;
CutlassGemm& CutlassGemm::operator=(CutlassGemm&&) noexcept = default;
CutlassGemm::~CutlassGemm() = default;

const CutlassGemmSpec& CutlassGemm::spec() const {
  return state_->spec;
}

std::uint64_t CutlassGemm::device_bytes(std::int64_t groups, const DeviceFacts& facts) {
  ArenaPlan plan;
  static_cast<void>(carve(plan, groups, facts));
  return plan.bytes();
}

void CutlassGemm::run(CutlassTile tile, cudaStream_t stream) {
  switch (tile) {
    case CutlassTile::kCooperative256x128:
      state_->cooperative_256x128.run(stream);
      break;
    case CutlassTile::kCooperative256x192:
      state_->cooperative_256x192.run(stream);
      break;
    case CutlassTile::kPingpong128x192:
      state_->pingpong_128x192.run(stream);
      break;
  }
  MOE_CUDA_CHECK_LAUNCH("cutlass grouped GEMM");
}

void describe_groups(const std::int32_t* offsets, CutlassGemm& first,
                     const CutlassGemm::Operands& of_first, CutlassGemm& second,
                     const CutlassGemm::Operands& of_second, cudaStream_t stream) {
  const std::int64_t groups = first.spec().groups;
  MOE_CHECK(second.spec().groups == groups, "{} groups in one product, {} in the other", groups,
            second.spec().groups);
  const dim3 grid(static_cast<unsigned>((groups + kDescribeThreads - 1) / kDescribeThreads), 2);
  describe_groups_kernel<<<grid, kDescribeThreads, 0, stream>>>(
      offsets, {first.state_->layout.arrays, first.spec(), of_first},
      {second.state_->layout.arrays, second.spec(), of_second});
  MOE_CUDA_CHECK_LAUNCH("describe_groups_kernel");
}

#else  // MOE_CUTLASS_MISSING

std::string cutlass_unsupported(const CutlassGemmSpec&) {
  return MOE_CUTLASS_MISSING;
}
std::string cutlass_version() {
  return "no CUTLASS";
}

struct CutlassGemm::State {
  CutlassGemmSpec spec;
};
CutlassGemm::CutlassGemm(const CutlassGemmSpec& spec, const DeviceFacts&) {
  throw Error(ErrorCode::kUnsupported, cutlass_unsupported(spec));
}
CutlassGemm::CutlassGemm(CutlassGemm&&) noexcept = default;
CutlassGemm& CutlassGemm::operator=(CutlassGemm&&) noexcept = default;
CutlassGemm::~CutlassGemm() = default;
const CutlassGemmSpec& CutlassGemm::spec() const {
  return state_->spec;
}
std::uint64_t CutlassGemm::device_bytes(std::int64_t, const DeviceFacts&) {
  return 0;
}
void CutlassGemm::run(CutlassTile, cudaStream_t) {
  throw Error(ErrorCode::kUnsupported, MOE_CUTLASS_MISSING);
}
void describe_groups(const std::int32_t*, CutlassGemm&, const CutlassGemm::Operands&, CutlassGemm&,
                     const CutlassGemm::Operands&, cudaStream_t) {
  throw Error(ErrorCode::kUnsupported, MOE_CUTLASS_MISSING);
}

#endif  // MOE_CUTLASS_MISSING

}  // namespace moe::cuda
