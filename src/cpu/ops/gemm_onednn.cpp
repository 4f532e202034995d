#include "cpu/ops/gemm_onednn.h"

#include "core/check.h"

#if MOE_HAVE_ONEDNN

#include <dnnl.h>
#include <omp.h>

#include <algorithm>
#include <array>
#include <mutex>
#include <utility>

namespace moe::cpu::onednn {
namespace {

void check(dnnl_status_t status, const char* what, const std::string& arguments = {}) {
  if (status == dnnl_success) return;
  const char* reason = status == dnnl_out_of_memory       ? "out of memory"
                       : status == dnnl_invalid_arguments ? "invalid arguments"
                       : status == dnnl_unimplemented     ? "unimplemented"
                       : status == dnnl_runtime_error     ? "runtime error"
                                                          : "unexpected status";
  throw Error(status == dnnl_out_of_memory   ? ErrorCode::kOutOfMemory
              : status == dnnl_unimplemented ? ErrorCode::kUnsupported
                                             : ErrorCode::kInternal,
              fmt::format("oneDNN: {} failed: {} ({}){}{}", what, reason, static_cast<int>(status),
                          arguments.empty() ? "" : " for ", arguments));
}

template <class Handle, dnnl_status_t (*destroy)(Handle)>
struct Destroyer {
  void operator()(Handle handle) const { destroy(handle); }
};
template <class Handle, dnnl_status_t (*destroy)(Handle)>
using Owner = std::unique_ptr<std::remove_pointer_t<Handle>, Destroyer<Handle, destroy>>;
using EngineOwner = Owner<dnnl_engine_t, dnnl_engine_destroy>;
using StreamOwner = Owner<dnnl_stream_t, dnnl_stream_destroy>;
using PrimitiveOwner = Owner<dnnl_primitive_t, dnnl_primitive_destroy>;
using PrimitiveDescOwner = Owner<dnnl_primitive_desc_t, dnnl_primitive_desc_destroy>;
using AttrOwner = Owner<dnnl_primitive_attr_t, dnnl_primitive_attr_destroy>;

struct Isas {
  Isa tier;
  dnnl_cpu_isa_t library;
};
// oneDNN's AVX512_CORE is F, BW, DQ, VL: this project's avx512f tier.
constexpr std::array<Isas, 4> kIsas = {{{Isa::kAvx2, dnnl_cpu_isa_avx2},
                                        {Isa::kAvx512f, dnnl_cpu_isa_avx512_core},
                                        {Isa::kAvx512bf16, dnnl_cpu_isa_avx512_core_bf16},
                                        {Isa::kAmx, dnnl_cpu_isa_avx512_core_amx}}};

/// Highest tier whose features oneDNN's bit mask contains.
Isa tier_of(dnnl_cpu_isa_t isa) {
  Isa tier = Isa::kScalar;
  for (const Isas& pair : kIsas) {
    if ((isa & pair.library) == pair.library) tier = pair.tier;
  }
  return tier;
}

/// Whether this process has used oneDNN. NOTE: asking dnnl_get_effective_cpu_isa() is such a use, in
/// 2.6: dnnl_set_max_cpu_isa() is refused afterwards.
struct IsaState {
  std::mutex mutex;
  bool claimed = false;
};
IsaState& isa_state() {
  static IsaState state;
  return state;
}

std::string refuse(DType dtype, Isa ceiling, bool claimed) {
  if (ceiling < Isa::kAvx2) {
    return fmt::format("oneDNN cannot be held to isa '{}': its lowest vector code is above it",
                       name_of(ceiling));
  }
  const Isa effective = claimed ? tier_of(dnnl_get_effective_cpu_isa()) : best_isa();
  if (claimed && effective > ceiling) {
    return fmt::format(
        "isa '{}' asked for, but oneDNN already runs with '{}' in this process and cannot go "
        "back: start a new process with --isa {}",
        name_of(ceiling), name_of(effective), name_of(ceiling));
  }
  const Isa used = std::min(effective, ceiling);
  if (used < Isa::kAvx2) {
    return fmt::format("oneDNN is used from AVX2 on; isa in use is '{}'", name_of(used));
  }
  if (dtype == DType::kBF16 && used < Isa::kAvx512f) {
    return fmt::format("bf16 in oneDNN needs AVX-512 (F, BW, DQ, VL); isa in use is '{}'",
                       name_of(used));
  }
  return {};
}

dnnl_engine_t engine() {
  static const EngineOwner owner = [] {
    dnnl_engine_t handle = nullptr;
    check(dnnl_engine_create(&handle, dnnl_cpu, 0), "creating the CPU engine");
    return EngineOwner(handle);
  }();
  return owner.get();
}

// A CPU stream has no queue and no state that an execution changes, so threads share it.
dnnl_stream_t stream() {
  static const StreamOwner owner = [] {
    dnnl_stream_t handle = nullptr;
    check(dnnl_stream_create(&handle, engine(), dnnl_stream_default_flags), "creating a stream");
    return StreamOwner(handle);
  }();
  return owner.get();
}

dnnl_data_type_t library_type(DType dtype) {
  return dtype == DType::kF32 ? dnnl_f32 : dnnl_bf16;
}

dnnl_memory_desc_t strided(dnnl_data_type_t type, std::int64_t rows, std::int64_t columns,
                           std::int64_t row_stride, std::int64_t column_stride) {
  const dnnl_dims_t dims = {rows, columns};
  const dnnl_dims_t strides = {row_stride, column_stride};
  dnnl_memory_desc_t desc;
  check(dnnl_memory_desc_init_by_strides(&desc, 2, dims, type, strides), "describing a matrix",
        fmt::format("{}x{} with strides {},{}", rows, columns, row_stride, column_stride));
  return desc;
}

PrimitiveDescOwner describe_matmul(DType dtype, std::int64_t m, std::int64_t n, std::int64_t k,
                                   const dnnl_memory_desc_t& weights) {
  const dnnl_memory_desc_t a = strided(library_type(dtype), m, k, k, 1);
  const dnnl_memory_desc_t c = strided(dnnl_f32, m, n, n, 1);
  const std::string sizes = fmt::format("m={} n={} k={} {}", m, n, k, name_of(dtype));
  dnnl_matmul_desc_t desc;
  check(dnnl_matmul_desc_init(&desc, &a, &weights, nullptr, &c), "describing a matmul", sizes);
  dnnl_primitive_attr_t attr_handle = nullptr;
  check(dnnl_primitive_attr_create(&attr_handle), "creating attributes");
  const AttrOwner attr(attr_handle);
  check(dnnl_primitive_attr_set_scratchpad_mode(attr_handle, dnnl_scratchpad_mode_user),
        "choosing the scratchpad mode");
  dnnl_primitive_desc_t handle = nullptr;
  check(dnnl_primitive_desc_create(&handle, &desc, attr_handle, engine(), nullptr),
        "choosing a matmul", sizes);
  return PrimitiveDescOwner(handle);
}

std::string implementation_of(const_dnnl_primitive_desc_t desc) {
  const char* name = nullptr;
  check(dnnl_primitive_desc_query(desc, dnnl_query_impl_info_str, 0, &name),
        "asking for the kernel's name");
  return name;
}

/// The tier named in an implementation like "brg:avx512_core_bf16". Names without one ("gemm:jit")
/// use what is in use; fp32 arithmetic has no tier above AVX-512F.
Isa tier_of(const std::string& implementation, DType dtype) {
  const auto named = [&](const char* isa) { return implementation.find(isa) != std::string::npos; };
  if (named("avx512_core_amx")) return Isa::kAmx;
  if (named("avx512_core_bf16")) return Isa::kAvx512bf16;
  if (named("avx512_core")) return Isa::kAvx512f;
  if (named("avx2")) return Isa::kAvx2;
  const Isa in_use = tier_of(dnnl_get_effective_cpu_isa());
  return dtype == DType::kF32 ? std::min(in_use, Isa::kAvx512f) : in_use;
}

dnnl_memory_t make_memory(const dnnl_memory_desc_t& desc, void* data) {
  dnnl_memory_t handle = nullptr;
  check(dnnl_memory_create(&handle, &desc, engine(), data), "creating a memory object");
  return handle;
}

}  // namespace

std::string unavailable(DType dtype, Isa ceiling) {
  const std::lock_guard lock(isa_state().mutex);
  return refuse(dtype, ceiling, isa_state().claimed);
}

void claim_isa(DType dtype, Isa ceiling) {
  IsaState& state = isa_state();
  const std::lock_guard lock(state.mutex);
  const auto check_ceiling = [&] {
    const std::string reason = refuse(dtype, ceiling, state.claimed);
    if (!reason.empty()) throw Error(ErrorCode::kUnsupported, reason);
  };
  check_ceiling();  // a refused claim leaves the choice to the next one
  if (!state.claimed && ceiling < best_isa()) {
    for (const Isas& pair : kIsas) {
      // Fails when code outside this library used oneDNN first: the check below then says so.
      if (pair.tier == ceiling) dnnl_set_max_cpu_isa(pair.library);
    }
  }
  state.claimed = true;
  check_ceiling();
}

Isa isa_in_use() {
  return tier_of(dnnl_get_effective_cpu_isa());
}

std::string version() {
  const dnnl_version_t* v = dnnl_version();
  return fmt::format("oneDNN {}.{}.{}", v->major, v->minor, v->patch);
}

void throw_on_failure(int status) {
  check(static_cast<dnnl_status_t>(status), "running a matmul");
}

ThreadScope::ThreadScope(int threads) : previous_(omp_get_max_threads()) {
  omp_set_num_threads(threads);
}
ThreadScope::~ThreadScope() {
  omp_set_num_threads(previous_);
}

// --- WeightLayout ------------------------------------------------------------------------------

struct WeightLayout::State {
  DType dtype = DType::kF32;
  std::int64_t n = 0;
  std::int64_t k = 0;
  dnnl_memory_desc_t desc{};  // W^T as a [k,n] matrix, in the library's blocking
  Isa isa = Isa::kScalar;
};

WeightLayout::WeightLayout(DType dtype, std::int64_t n, std::int64_t k, std::int64_t typical_rows,
                           int threads)
    : state_(std::make_unique<State>()) {
  const ThreadScope scope(threads);
  const dnnl_dims_t dims = {k, n};
  dnnl_memory_desc_t any;
  check(dnnl_memory_desc_init_by_tag(&any, 2, dims, library_type(dtype), dnnl_format_tag_any),
        "describing weights", fmt::format("k={} n={}", k, n));
  const PrimitiveDescOwner matmul = describe_matmul(dtype, typical_rows, n, k, any);
  *state_ = {dtype, n, k, *dnnl_primitive_desc_query_md(matmul.get(), dnnl_query_weights_md, 0),
             tier_of(implementation_of(matmul.get()), dtype)};
}

WeightLayout::WeightLayout(WeightLayout&&) noexcept = default;
WeightLayout& WeightLayout::operator=(WeightLayout&&) noexcept = default;
WeightLayout::~WeightLayout() = default;
Isa WeightLayout::isa() const {
  return state_->isa;
}
std::size_t WeightLayout::bytes() const {
  return dnnl_memory_desc_get_size(&state_->desc);
}
std::int64_t WeightLayout::n() const {
  return state_->n;
}
std::int64_t WeightLayout::k() const {
  return state_->k;
}

// --- PackedMatrix ------------------------------------------------------------------------------

PackedMatrix::PackedMatrix(const WeightLayout& layout, const void* rows, void* storage) {
  const WeightLayout::State& want = *layout.state_;
  const dnnl_memory_desc_t given = strided(library_type(want.dtype), want.k, want.n, 1, want.k);
  dnnl_primitive_desc_t desc_handle = nullptr;
  check(dnnl_reorder_primitive_desc_create(&desc_handle, &given, engine(), &want.desc, engine(),
                                           nullptr),
        "choosing a reorder", fmt::format("k={} n={}", want.k, want.n));
  const PrimitiveDescOwner desc(desc_handle);
  dnnl_primitive_t reorder_handle = nullptr;
  check(dnnl_primitive_create(&reorder_handle, desc_handle), "creating a reorder");
  const PrimitiveOwner reorder(reorder_handle);
  // The source is only read; the C API has no const memory.
  const Owner<dnnl_memory_t, dnnl_memory_destroy> source(
      make_memory(given, const_cast<void*>(rows)));
  memory_ = make_memory(want.desc, storage);
  const std::array<dnnl_exec_arg_t, 2> arguments = {
      {{DNNL_ARG_FROM, source.get()}, {DNNL_ARG_TO, memory_}}};
  const dnnl_status_t status =
      dnnl_primitive_execute(reorder_handle, stream(), 2, arguments.data());
  if (status != dnnl_success) dnnl_memory_destroy(memory_);
  check(status, "packing weights", fmt::format("k={} n={}", want.k, want.n));
}

PackedMatrix::PackedMatrix(PackedMatrix&& other) noexcept
    : memory_(std::exchange(other.memory_, nullptr)) {}
PackedMatrix& PackedMatrix::operator=(PackedMatrix&& other) noexcept {
  std::swap(memory_, other.memory_);
  return *this;
}
PackedMatrix::~PackedMatrix() {
  if (memory_ != nullptr) dnnl_memory_destroy(memory_);
}

// --- Gemm --------------------------------------------------------------------------------------

struct Gemm::State {
  PrimitiveOwner primitive;
  dnnl_memory_desc_t a{};
  dnnl_memory_desc_t c{};
  dnnl_memory_desc_t scratch{};
  std::string implementation;
};

Gemm::Gemm(const WeightLayout& layout, std::int64_t m, int threads)
    : state_(std::make_unique<State>()) {
  const ThreadScope scope(threads);
  const WeightLayout::State& w = *layout.state_;
  const PrimitiveDescOwner desc = describe_matmul(w.dtype, m, w.n, w.k, w.desc);
  dnnl_primitive_t handle = nullptr;
  check(dnnl_primitive_create(&handle, desc.get()), "creating a matmul",
        fmt::format("m={} n={} k={}", m, w.n, w.k));
  state_->primitive.reset(handle);
  state_->a = *dnnl_primitive_desc_query_md(desc.get(), dnnl_query_src_md, 0);
  state_->c = *dnnl_primitive_desc_query_md(desc.get(), dnnl_query_dst_md, 0);
  state_->scratch = *dnnl_primitive_desc_query_md(desc.get(), dnnl_query_scratchpad_md, 0);
  state_->implementation = implementation_of(desc.get());
}

Gemm::Gemm(Gemm&&) noexcept = default;
Gemm& Gemm::operator=(Gemm&&) noexcept = default;
Gemm::~Gemm() = default;
std::size_t Gemm::scratch_bytes() const {
  return dnnl_memory_desc_get_size(&state_->scratch);
}
const std::string& Gemm::implementation() const {
  return state_->implementation;
}

// --- GemmCall ----------------------------------------------------------------------------------

GemmCall::GemmCall(const Gemm& gemm) : primitive_(gemm.state_->primitive.get()) {
  try {
    a_ = make_memory(gemm.state_->a, DNNL_MEMORY_NONE);
    c_ = make_memory(gemm.state_->c, DNNL_MEMORY_NONE);
    scratch_ = make_memory(gemm.state_->scratch, DNNL_MEMORY_NONE);
  } catch (...) {
    release();
    throw;
  }
}

GemmCall::GemmCall(GemmCall&& other) noexcept {
  *this = std::move(other);
}
GemmCall& GemmCall::operator=(GemmCall&& other) noexcept {
  std::swap(primitive_, other.primitive_);
  std::swap(a_, other.a_);
  std::swap(c_, other.c_);
  std::swap(scratch_, other.scratch_);
  return *this;
}
GemmCall::~GemmCall() {
  release();
}

void GemmCall::release() noexcept {
  for (dnnl_memory* memory : {a_, c_, scratch_}) {
    if (memory != nullptr) dnnl_memory_destroy(memory);
  }
}

int GemmCall::run(const void* a, const PackedMatrix& w, float* c, void* scratch) noexcept {
  // A is only read; the C API has no const memory.
  dnnl_status_t status = dnnl_memory_set_data_handle(a_, const_cast<void*>(a));
  if (status == dnnl_success) status = dnnl_memory_set_data_handle(c_, c);
  if (status == dnnl_success) status = dnnl_memory_set_data_handle(scratch_, scratch);
  if (status != dnnl_success) return status;
  const std::array<dnnl_exec_arg_t, 4> arguments = {{{DNNL_ARG_SRC, a_},
                                                     {DNNL_ARG_WEIGHTS, w.memory_},
                                                     {DNNL_ARG_DST, c_},
                                                     {DNNL_ARG_SCRATCHPAD, scratch_}}};
  return dnnl_primitive_execute(primitive_, stream(), static_cast<int>(arguments.size()),
                                arguments.data());
}

}  // namespace moe::cpu::onednn

#else  // MOE_HAVE_ONEDNN

namespace moe::cpu::onednn {
namespace {

constexpr const char* kAbsent = "built without oneDNN (libdnnl-dev)";

[[noreturn]] void refuse() {
  throw Error(ErrorCode::kUnsupported, kAbsent);
}

}  // namespace

std::string unavailable(DType, Isa) {
  return kAbsent;
}
void claim_isa(DType, Isa) {
  refuse();
}
void throw_on_failure(int) {
  refuse();
}
Isa isa_in_use() {
  refuse();
}
std::string version() {
  return kAbsent;
}

// Nothing below can be constructed, so nothing has state; the members exist to be linked.
struct WeightLayout::State {};
struct Gemm::State {};
ThreadScope::ThreadScope(int) : previous_(0) {
  refuse();
}
ThreadScope::~ThreadScope() = default;
WeightLayout::WeightLayout(DType, std::int64_t, std::int64_t, std::int64_t, int) {
  refuse();
}
WeightLayout::WeightLayout(WeightLayout&&) noexcept = default;
WeightLayout& WeightLayout::operator=(WeightLayout&&) noexcept = default;
WeightLayout::~WeightLayout() = default;
Isa WeightLayout::isa() const {
  refuse();
}
std::size_t WeightLayout::bytes() const {
  refuse();
}
std::int64_t WeightLayout::n() const {
  refuse();
}
std::int64_t WeightLayout::k() const {
  refuse();
}
PackedMatrix::PackedMatrix(const WeightLayout&, const void*, void*) {
  refuse();
}
PackedMatrix::PackedMatrix(PackedMatrix&&) noexcept = default;
PackedMatrix& PackedMatrix::operator=(PackedMatrix&&) noexcept = default;
PackedMatrix::~PackedMatrix() = default;
Gemm::Gemm(const WeightLayout&, std::int64_t, int) {
  refuse();
}
Gemm::Gemm(Gemm&&) noexcept = default;
Gemm& Gemm::operator=(Gemm&&) noexcept = default;
Gemm::~Gemm() = default;
std::size_t Gemm::scratch_bytes() const {
  refuse();
}
const std::string& Gemm::implementation() const {
  refuse();
}
GemmCall::GemmCall(const Gemm&) {
  refuse();
}
GemmCall::GemmCall(GemmCall&&) noexcept = default;
GemmCall& GemmCall::operator=(GemmCall&&) noexcept = default;
GemmCall::~GemmCall() = default;
void GemmCall::release() noexcept {}
int GemmCall::run(const void*, const PackedMatrix&, float*, void*) noexcept {
  return -1;
}

}  // namespace moe::cpu::onednn

#endif  // MOE_HAVE_ONEDNN
