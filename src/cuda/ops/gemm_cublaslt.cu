#include "cuda/ops/gemm_cublaslt.h"

#include <cublasLt.h>

#include <algorithm>
#include <cstring>
#include <iterator>
#include <map>
#include <utility>

#include "core/check.h"
#include "cuda/check.h"
#include "cuda/device/element.cuh"

namespace moe::cuda {
namespace {

[[noreturn]] void throw_cublas_error(cublasStatus_t status, const char* expression, int line) {
  fail(ErrorCode::kCuda, "{} ({}) from {} at src/cuda/ops/gemm_cublaslt.cu:{}",
       cublasLtGetStatusString(status), cublasLtGetStatusName(status), expression, line);
}

#define MOE_CUBLAS_CHECK(call)                                                           \
  do {                                                                                   \
    if (const cublasStatus_t moe_status = (call); moe_status != CUBLAS_STATUS_SUCCESS) { \
      throw_cublas_error(moe_status, #call, __LINE__);                                   \
    }                                                                                    \
  } while (false)

cudaDataType_t cuda_type(DType dtype) {
  return dtype == DType::kF32 ? CUDA_R_32F : CUDA_R_16BF;
}

cudaDataType_t input_type(const MatmulSpec& spec) {
  return spec.e4m3 ? CUDA_R_8F_E4M3 : cuda_type(spec.in);
}
std::size_t input_size(const MatmulSpec& spec) {
  return spec.e4m3 ? 1 : size_of(spec.in);
}

/// One of the library's descriptors, with its destructor.
template <class Handle, cublasStatus_t (*kDestroy)(Handle)>
class Descriptor {
 public:
  Descriptor() = default;
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() {
    if (handle_ != nullptr) static_cast<void>(kDestroy(handle_));
  }
  [[nodiscard]] Handle* out() { return &handle_; }
  [[nodiscard]] Handle get() const { return handle_; }

 private:
  Handle handle_ = nullptr;
};
using Operation = Descriptor<cublasLtMatmulDesc_t, cublasLtMatmulDescDestroy>;
using Layout = Descriptor<cublasLtMatrixLayout_t, cublasLtMatrixLayoutDestroy>;
using Preference = Descriptor<cublasLtMatmulPreference_t, cublasLtMatmulPreferenceDestroy>;

template <class Value>
void set(const Layout& layout, cublasLtMatrixLayoutAttribute_t attribute, const Value& value) {
  MOE_CUBLAS_CHECK(
      cublasLtMatrixLayoutSetAttribute(layout.get(), attribute, &value, sizeof(value)));
}
template <class Value>
void set(const Operation& operation, cublasLtMatmulDescAttributes_t attribute, const Value& value) {
  MOE_CUBLAS_CHECK(
      cublasLtMatmulDescSetAttribute(operation.get(), attribute, &value, sizeof(value)));
}
template <class Value>
void set(const Preference& preference, cublasLtMatmulPreferenceAttributes_t attribute,
         const Value& value) {
  MOE_CUBLAS_CHECK(
      cublasLtMatmulPreferenceSetAttribute(preference.get(), attribute, &value, sizeof(value)));
}

static_assert(sizeof(cublasLtMatmulAlgo_t) == sizeof(MatmulAlgorithm), "copied bit by bit");
cublasLtMatmulAlgo_t to_library(const MatmulAlgorithm& algorithm) {
  cublasLtMatmulAlgo_t algo;
  std::memcpy(&algo, &algorithm, sizeof(algo));
  return algo;
}
MatmulAlgorithm from_library(const cublasLtMatmulAlgo_t& algo) {
  MatmulAlgorithm algorithm;
  std::memcpy(algorithm.bits.data(), &algo, sizeof(algo));
  return algorithm;
}

/// A parameter of an algorithm; `absent` when the library does not say.
template <class Value>
Value config(const cublasLtMatmulAlgo_t& algorithm, cublasLtMatmulAlgoConfigAttributes_t attribute,
             Value absent) {
  std::size_t written = 0;
  static_cast<void>(cublasLtMatmulAlgoConfigGetAttribute(&algorithm, attribute, &absent,
                                                         sizeof(absent), &written));
  return absent;
}

/// Kernels put the batch into a grid dimension that ends here.
constexpr std::int64_t kMostBatch = 65535;

}  // namespace

struct CublasLt::State {
  cublasLtHandle_t handle = nullptr;
  DeviceBuffer workspace;
};

CublasLt::CublasLt() : state_(std::make_unique<State>()) {
  state_->workspace = DeviceBuffer(kWorkspaceBytes);
  MOE_CUBLAS_CHECK(cublasLtCreate(&state_->handle));
}
CublasLt::~CublasLt() {
  if (state_->handle != nullptr) static_cast<void>(cublasLtDestroy(state_->handle));
}

std::int64_t row_bucket(std::int64_t m) {
  std::int64_t step = 1;
  while (m > 64 * step) step *= 2;
  return (m + step - 1) / step * step;
}

struct Matmul::State {
  CublasLt::State* library = nullptr;
  MatmulSpec spec;
  // cuBLASLt is column-major: what it calls D[n,m] = W[k,n]^T · A[k,m] is our row-major C.
  Operation operation;
  Layout w, a, c;
  /// By (row bucket, whether every address and row allows 16-byte accesses).
  std::map<std::pair<std::int64_t, bool>, MatmulAlgorithm> algorithms;
  struct Preferred {
    std::int64_t last = 0;
    MatmulAlgorithm algorithm;
  };
  std::map<std::int64_t, Preferred> preferred;  // by first m

  /// Bytes of the workspace that one call may use.
  [[nodiscard]] std::size_t lane_bytes() const {
    return library->workspace.size() / static_cast<std::size_t>(spec.lanes) / 256 * 256;
  }

  /// The library's proposals for the sizes that are set.
  [[nodiscard]] std::vector<MatmulAlgorithm> ask(bool wide, int most) const {
    Preference preference;
    MOE_CUBLAS_CHECK(cublasLtMatmulPreferenceCreate(preference.out()));
    set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, lane_bytes());
    // Partial sums of a split k stay in fp32.
    set(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
        static_cast<std::uint32_t>(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
    const auto in_bytes = static_cast<std::uint32_t>(wide ? 16 : input_size(spec));
    const auto out_bytes = static_cast<std::uint32_t>(wide ? 16 : size_of(spec.out));
    set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, in_bytes);
    set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, in_bytes);
    set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, out_bytes);
    set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, out_bytes);
    // NOTE: no std::vector of it: nvcc 13.0 dies at the destructor of a struct without a name.
    const auto found =
        std::make_unique<cublasLtMatmulHeuristicResult_t[]>(static_cast<std::size_t>(most));
    int count = 0;
    const cublasStatus_t status =
        cublasLtMatmulAlgoGetHeuristic(library->handle, operation.get(), w.get(), a.get(), c.get(),
                                       c.get(), preference.get(), most, found.get(), &count);
    if (status != CUBLAS_STATUS_NOT_SUPPORTED) MOE_CUBLAS_CHECK(status);
    std::vector<MatmulAlgorithm> algorithms;
    for (int i = 0; i < count; ++i) {
      if (found[i].state == CUBLAS_STATUS_SUCCESS)
        algorithms.push_back(from_library(found[i].algo));
    }
    return algorithms;
  }

  void set_sizes(std::int64_t m, std::int64_t batch) {
    set(a, CUBLASLT_MATRIX_LAYOUT_COLS, static_cast<std::uint64_t>(m));
    set(c, CUBLASLT_MATRIX_LAYOUT_COLS, static_cast<std::uint64_t>(m));
    for (const Layout* layout : {&w, &a, &c}) {
      set(*layout, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, static_cast<std::int32_t>(batch));
    }
  }

  /// Whether the strides, fixed for all calls, allow 16-byte accesses.
  [[nodiscard]] bool strides_are_wide() const {
    const auto in = static_cast<std::int64_t>(input_size(spec));
    const auto out = static_cast<std::int64_t>(size_of(spec.out));
    const std::int64_t a_stride = spec.a_stride == 0 ? spec.k : spec.a_stride;
    return spec.k * in % 16 == 0 && a_stride * in % 16 == 0 && spec.n * out % 16 == 0 &&
           spec.batch_stride_w * in % 16 == 0 && spec.batch_stride_a * in % 16 == 0 &&
           spec.batch_stride_c * out % 16 == 0;
  }

  const MatmulAlgorithm& algorithm(std::int64_t m, std::int64_t batch, bool wide) {
    if (wide && batch == 1) {
      const auto after = preferred.upper_bound(m);
      if (after != preferred.begin() && std::prev(after)->second.last >= m) {
        return std::prev(after)->second.algorithm;
      }
    }
    const auto key = std::make_pair(row_bucket(m), wide);
    const auto known = algorithms.find(key);
    if (known != algorithms.end()) return known->second;

    set_sizes(key.first, batch);
    const auto found = ask(wide, 1);
    if (found.empty()) {
      fail(ErrorCode::kUnsupported,
           "cuBLASLt has no kernel for m={} n={} k={} {} to {}, aligned to {} bytes", key.first,
           spec.n, spec.k, spec.e4m3 ? "e4m3" : name_of(spec.in), name_of(spec.out),
           wide ? 16 : input_size(spec));
    }
    return algorithms.emplace(key, found.front()).first->second;
  }
};

Matmul::Matmul(CublasLt& library, const MatmulSpec& spec) : state_(std::make_unique<State>()) {
  State& s = *state_;
  s.library = library.state_.get();
  s.spec = spec;
  const auto n = static_cast<std::uint64_t>(spec.n);
  const auto k = static_cast<std::uint64_t>(spec.k);
  const std::int64_t a_stride = spec.a_stride == 0 ? spec.k : spec.a_stride;
  MOE_CUBLAS_CHECK(cublasLtMatmulDescCreate(s.operation.out(), CUBLAS_COMPUTE_32F, CUDA_R_32F));
  set(s.operation, CUBLASLT_MATMUL_DESC_TRANSA, CUBLAS_OP_T);
  if (spec.e4m3) {
    set(s.operation, CUBLASLT_MATMUL_DESC_FAST_ACCUM, std::int8_t{1});
    // What the library calls A is our W.
    if (spec.scale_w != nullptr) {
      set(s.operation, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, spec.scale_w);
    }
    if (spec.scale_a != nullptr) {
      set(s.operation, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, spec.scale_a);
    }
  }
  MOE_CUBLAS_CHECK(cublasLtMatrixLayoutCreate(s.w.out(), input_type(spec), k, n, spec.k));
  MOE_CUBLAS_CHECK(cublasLtMatrixLayoutCreate(s.a.out(), input_type(spec), k, 1, a_stride));
  MOE_CUBLAS_CHECK(cublasLtMatrixLayoutCreate(s.c.out(), cuda_type(spec.out), n, 1, spec.n));
  set(s.w, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, spec.batch_stride_w);
  set(s.a, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, spec.batch_stride_a);
  set(s.c, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, spec.batch_stride_c);
}
Matmul::Matmul(Matmul&&) noexcept = default;
Matmul& Matmul::operator=(Matmul&&) noexcept = default;
Matmul::~Matmul() = default;

std::int64_t Matmul::n() const {
  return state_->spec.n;
}
std::int64_t Matmul::k() const {
  return state_->spec.k;
}

void Matmul::choose_up_to(std::int64_t most_rows) {
  const bool wide = state_->strides_are_wide();
  for (std::int64_t m = 1; m <= most_rows; m = row_bucket(m) + 1) {
    static_cast<void>(state_->algorithm(m, 1, wide));
  }
  static_cast<void>(state_->algorithm(most_rows, 1, wide));
}

std::vector<MatmulAlgorithm> Matmul::candidates(std::int64_t m, int most) const {
  if (!state_->strides_are_wide()) return {};
  state_->set_sizes(m, 1);
  return state_->ask(true, most);
}

bool Matmul::prefer(std::int64_t first, std::int64_t last, const MatmulAlgorithm& algorithm) {
  State& s = *state_;
  if (!s.strides_are_wide()) return false;
  const cublasLtMatmulAlgo_t algo = to_library(algorithm);
  for (std::int64_t m = first; m <= last; m = std::max(m + 1, std::min(row_bucket(m + 1), last))) {
    s.set_sizes(m, 1);
    cublasLtMatmulHeuristicResult_t result{};
    const cublasStatus_t status =
        cublasLtMatmulAlgoCheck(s.library->handle, s.operation.get(), s.w.get(), s.a.get(),
                                s.c.get(), s.c.get(), &algo, &result);
    if (status != CUBLAS_STATUS_SUCCESS || result.workspaceSize > s.lane_bytes()) return false;
  }
  s.preferred[first] = {last, algorithm};
  return true;
}

void Matmul::prefer_nothing() {
  state_->preferred.clear();
}

void Matmul::take_choices(const Matmul& other) {
  state_->algorithms = other.state_->algorithms;
  state_->preferred = other.state_->preferred;
}

void Matmul::run(const void* a, const void* w, void* c, std::int64_t m, cudaStream_t stream,
                 std::int64_t batch, int lane) {
  State& s = *state_;
  const bool wide = s.strides_are_wide() && in_widest_vectors(0, {a, w, c});
  const float one = 1;
  const float zero = 0;
  for (std::int64_t first = 0; first < batch; first += kMostBatch) {
    const std::int64_t count = std::min(kMostBatch, batch - first);
    const auto offset = [&](std::int64_t stride, std::size_t size) {
      return first * stride * static_cast<std::int64_t>(size);
    };
    const cublasLtMatmulAlgo_t algorithm = to_library(s.algorithm(m, count, wide));
    s.set_sizes(m, count);
    std::byte* const out =
        static_cast<std::byte*>(c) + offset(s.spec.batch_stride_c, size_of(s.spec.out));
    MOE_CUBLAS_CHECK(cublasLtMatmul(
        s.library->handle, s.operation.get(), &one,
        static_cast<const std::byte*>(w) + offset(s.spec.batch_stride_w, input_size(s.spec)),
        s.w.get(),
        static_cast<const std::byte*>(a) + offset(s.spec.batch_stride_a, input_size(s.spec)),
        s.a.get(), &zero, out, s.c.get(), out, s.c.get(), &algorithm,
        s.library->workspace.as<std::byte>() + static_cast<std::size_t>(lane) * s.lane_bytes(),
        s.lane_bytes(), stream));
  }
}

std::string describe(const MatmulAlgorithm& algorithm) {
  const cublasLtMatmulAlgo_t algo = to_library(algorithm);
  return fmt::format("algorithm {}, tile {}, stages {}, cluster {}, split k {}",
                     config(algo, CUBLASLT_ALGO_CONFIG_ID, std::int32_t{-1}),
                     config(algo, CUBLASLT_ALGO_CONFIG_TILE_ID, std::uint32_t{0}),
                     config(algo, CUBLASLT_ALGO_CONFIG_STAGES_ID, std::uint32_t{0}),
                     config(algo, CUBLASLT_ALGO_CONFIG_CLUSTER_SHAPE_ID, std::uint16_t{0}),
                     config(algo, CUBLASLT_ALGO_CONFIG_SPLITK_NUM, std::int32_t{1}));
}

std::string cublaslt_version() {
  const std::size_t version = cublasLtGetVersion();
  return fmt::format("cuBLASLt {}.{}.{}", version / 10000, version % 10000 / 100, version % 100);
}

}  // namespace moe::cuda
