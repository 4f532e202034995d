// The main loop of level 8 on dense problems (one expert) against cuBLASLt's best heuristic, one JSON
// object a line.
//   mainloop [--block MS] [--rounds N] [--together N,...] [SHAPE...]
// SHAPE = name of kShapes; nothing = all. --together tries orders of the tiles (TileOrder: row tiles that take
// turns on a feature pair) beside the one that is chosen.
// Both get the same normal data. The whole output is compared before and after timing. A round is a
// block of repetitions of each, ours between two of the library's; each repetition begins with an L2 that
// holds nothing of use and no dirty lines. The share of a round is the mean of the library's two medians
// over ours. The card is power-limited in runs of this length, so a single share scatters by 2 to 3 %.
#include <cublasLt.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "arguments.h"
#include "core/check.h"
#include "cuda/backend.h"
#include "cuda/check.h"
#include "cuda/ops/grouped_gemm_sm90.h"
#include "cuda/ops/pack_blocked.h"
#include "cuda/ops/tile_order.h"
#include "device_data.cuh"

namespace moe::cuda {
namespace {

struct DenseShape {
  const char* name;
  std::int64_t tokens, features, depth;
};
constexpr DenseShape kShapes[] = {
    {"square-8192", 8192, 8192, 8192},    {"qwen3-gate-up", 65536, 1536, 2048},
    {"qwen3-down", 65536, 2048, 768},     {"mixtral-gate-up", 32768, 28672, 4096},
    {"mixtral-down", 32768, 4096, 14336}, {"gpt-oss-gate-up", 65536, 5760, 2880},
    {"gpt-oss-down", 65536, 2880, 2880},  {"deepseek-gate-up", 32768, 4096, 7168},
    {"deepseek-down", 32768, 7168, 2048}, {"off-tile", 1003, 960, 448},
};
constexpr double kRelativeError =
    5e-3;  // of the whole output, Frobenius norm: bf16 rounding is 2e-3

#define CUBLAS_CHECK(call)                                                            \
  do {                                                                                \
    if (const cublasStatus_t status = (call); status != CUBLAS_STATUS_SUCCESS) {      \
      fail(ErrorCode::kCuda, "{}: cuBLAS error {}", #call, static_cast<int>(status)); \
    }                                                                                 \
  } while (false)

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

class Timer {
 public:
  explicit Timer(cudaStream_t stream) : stream_(stream), flush_(stream) {}

  /// Median milliseconds of `repetitions` runs of `work`, each after `before` (may be empty), which
  /// is not timed. The host queues them all before it waits.
  double block(const std::function<void()>& before, const std::function<void()>& work,
               int repetitions) {
    std::vector<Event> starts(static_cast<std::size_t>(repetitions));
    std::vector<Event> ends(static_cast<std::size_t>(repetitions));
    for (std::size_t i = 0; i < starts.size(); ++i) {
      if (before) before();
      flush_.run();
      starts[i].record(stream_);
      work();
      ends[i].record(stream_);
    }
    MOE_CUDA_CHECK(cudaStreamSynchronize(stream_));
    std::vector<double> times;
    for (std::size_t i = 0; i < starts.size(); ++i) {
      times.push_back(ends[i].milliseconds_since(starts[i]));
    }
    return median(std::move(times));
  }

 private:
  cudaStream_t stream_;
  CacheFlush flush_;
};

/// out[tokens,features] = x · w^T by cuBLASLt, with the fastest of its eight first proposals.
class Library {
 public:
  Library(const DenseShape& shape, const void* x, const void* w, void* out, cudaStream_t stream,
          Timer& timer)
      : x_(x), w_(w), out_(out), stream_(stream), workspace_(kWorkspace) {
    CUBLAS_CHECK(cublasLtCreate(&handle_));
    CUBLAS_CHECK(cublasLtMatmulDescCreate(&operation_, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    const cublasOperation_t transpose = CUBLAS_OP_T;
    CUBLAS_CHECK(cublasLtMatmulDescSetAttribute(operation_, CUBLASLT_MATMUL_DESC_TRANSA, &transpose,
                                                sizeof(transpose)));
    const auto layout = [](cublasLtMatrixLayout_t& made, std::int64_t rows, std::int64_t columns) {
      CUBLAS_CHECK(cublasLtMatrixLayoutCreate(&made, CUDA_R_16BF, static_cast<std::uint64_t>(rows),
                                              static_cast<std::uint64_t>(columns), rows));
    };
    layout(w_layout_, shape.depth, shape.features);  // column-major: its transpose is ours
    layout(x_layout_, shape.depth, shape.tokens);
    layout(out_layout_, shape.features, shape.tokens);
    cublasLtMatmulPreference_t preference = nullptr;
    CUBLAS_CHECK(cublasLtMatmulPreferenceCreate(&preference));
    CUBLAS_CHECK(cublasLtMatmulPreferenceSetAttribute(
        preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &kWorkspace, sizeof(kWorkspace)));
    cublasLtMatmulHeuristicResult_t proposals[8];
    int count = 0;
    CUBLAS_CHECK(cublasLtMatmulAlgoGetHeuristic(handle_, operation_, w_layout_, x_layout_,
                                                out_layout_, out_layout_, preference, 8, proposals,
                                                &count));
    CUBLAS_CHECK(cublasLtMatmulPreferenceDestroy(preference));
    double best = INFINITY;
    for (int i = 0; i < count; ++i) {
      const cublasLtMatmulAlgo_t candidate = proposals[i].algo;
      run(candidate);
      const double milliseconds = timer.block(
          {}, [&] { run(candidate); }, 5);
      if (milliseconds < best) {
        best = milliseconds;
        algorithm_ = candidate;
      }
    }
  }
  Library(const Library&) = delete;
  Library& operator=(const Library&) = delete;
  ~Library() {
    cublasLtMatrixLayoutDestroy(w_layout_);
    cublasLtMatrixLayoutDestroy(x_layout_);
    cublasLtMatrixLayoutDestroy(out_layout_);
    cublasLtMatmulDescDestroy(operation_);
    cublasLtDestroy(handle_);
  }
  void run() { run(algorithm_); }

 private:
  void run(const cublasLtMatmulAlgo_t& algorithm) {
    const float one = 1;
    const float zero = 0;
    CUBLAS_CHECK(cublasLtMatmul(handle_, operation_, &one, w_, w_layout_, x_, x_layout_, &zero,
                                out_, out_layout_, out_, out_layout_, &algorithm, workspace_.data(),
                                kWorkspace, stream_));
  }
  static constexpr std::size_t kWorkspace = std::size_t{64} << 20;
  const void* x_;
  const void* w_;
  void* out_;
  cudaStream_t stream_;
  DeviceBuffer workspace_;
  cublasLtHandle_t handle_ = nullptr;
  cublasLtMatmulDesc_t operation_ = nullptr;
  cublasLtMatrixLayout_t w_layout_ = nullptr;
  cublasLtMatrixLayout_t x_layout_ = nullptr;
  cublasLtMatrixLayout_t out_layout_ = nullptr;
  cublasLtMatmulAlgo_t algorithm_{};
};

struct Options {
  int block_ms = 300;
  int rounds = 6;
  std::vector<std::string> shapes;
  std::vector<std::int64_t> together;  // GroupedGemmConfig::tiles_together
};

/// Buffers of one shape, ours and the library's products of the same data.
class DenseProblem {
 public:
  DenseProblem(const DenseShape& shape, const DeviceFacts& facts)
      : shape_(shape),
        facts_(facts),
        timer_(stream_.get()),
        x_(normal_values(shape.tokens * shape.depth, 1, 1.0F, stream_.get())),
        w_(normal_values(shape.features * shape.depth, 1ULL << 40,
                         1.0F / std::sqrt(static_cast<float>(shape.depth)), stream_.get())),
        theirs_(output_bytes()),
        ours_(output_bytes()),
        sums_(2 * sizeof(double)),
        offsets_(2 * sizeof(std::int32_t)),
        counters_((RowTiles::kCounts + RowTiles::kTickets) * sizeof(std::int32_t)),
        library_(shape, x_.data(), w_.data(), theirs_.data(), stream_.get(), timer_) {
    spec_ = {.epilogue = GemmEpilogue::kStore,
             .experts = 1,
             .feature_blocks = blocks_of(shape.features, kBlockFeatures),
             .k_blocks = blocks_of(shape.depth, kBlockDepth),
             .out_columns = shape.features};
    chosen_ = choose_grouped_gemm(spec_, shape.tokens, kGatheringTile, facts);
    chosen_.by_partition = false;  // of weights in a row, as the library's are
    packed_ = DeviceBuffer(BlockedShape{spec_.feature_blocks, spec_.k_blocks}.bytes(1));
    pack_rows_blocked(w_.data(), 1, shape.features, shape.depth,
                      {.data = packed_.data(), .experts = 1}, stream_.get());
    const std::int32_t offsets[2] = {0, static_cast<std::int32_t>(shape.tokens)};
    MOE_CUDA_CHECK(cudaMemcpy(offsets_.data(), offsets, sizeof(offsets), cudaMemcpyHostToDevice));
    list_ = DeviceBuffer(
        static_cast<std::size_t>(most_row_tiles(shape.tokens, 1, chosen_.largest_tile)) *
        sizeof(RowTile));
  }

  [[nodiscard]] const GroupedGemmConfig& chosen() const { return chosen_; }

  void time(const GroupedGemmConfig& config, const Options& options) {
    GroupedGemmSm90 gemm(spec_, config, facts_);
    const RowTiles tiles{list_.as<RowTile>(), counters_.as<std::int32_t>(),
                         counters_.as<std::int32_t>() + RowTiles::kCounts};
    const auto plan = [&] {  // outside of the timed region, as the library's choice is
      build_row_tiles({.expert_offsets = offsets_.as<std::int32_t>(),
                       .experts = 1,
                       .largest_tile = config.largest_tile},
                      tiles, stream_.get());
    };
    const auto multiply = [&] {
      gemm.run({.rows = x_.data(),
                .packed_weights = packed_.data(),
                .out = ours_.data(),
                .capacity = shape_.tokens,
                .row_tiles = tiles,
                .tickets = tiles.tickets},
               stream_.get());
    };
    const auto library = [&] { library_.run(); };

    MOE_CUDA_CHECK(cudaMemsetAsync(ours_.data(), 0xff, ours_.size(), stream_.get()));
    plan();
    multiply();
    const double error_before = error();
    if (!(error_before <= kRelativeError)) return report_wrong(config, error_before);
    const double once = timer_.block({}, library, 5);
    const int repetitions = std::max(3, static_cast<int>(options.block_ms / (once + 0.2)));
    std::vector<double> shares;
    std::vector<double> our_ms;
    std::vector<double> their_ms;
    double before = timer_.block({}, library, repetitions);
    for (int round = 0; round < options.rounds; ++round) {
      const double mine = timer_.block(plan, multiply, repetitions);
      const double after = timer_.block({}, library, repetitions);
      shares.push_back((before + after) / 2 / mine);
      our_ms.push_back(mine);
      their_ms.push_back((before + after) / 2);
      before = after;
    }
    const double error_after = error();
    if (!(error_after <= kRelativeError)) return report_wrong(config, error_after);
    std::sort(shares.begin(), shares.end());
    const double flops = 2.0 * static_cast<double>(shape_.tokens) *
                         static_cast<double>(shape_.features) * static_cast<double>(shape_.depth);
    fmt::print(
        "{{\"shape\":\"{}\",\"tokens\":{},\"features\":{},\"depth\":{},\"verified\":true,"
        "\"relative_error\":{:.2e},\"ours_ms\":{:.4f},\"library_ms\":{:.4f},\"ours_tflops\":{:.1f},"
        "\"library_tflops\":{:.1f},\"share\":{:.4f},\"share_min\":{:.4f},\"share_max\":{:.4f},"
        "\"rounds\":{},\"config\":\"{}\"}}\n",
        shape_.name, shape_.tokens, shape_.features, shape_.depth, error_after, median(our_ms),
        median(their_ms), flops / median(our_ms) * 1e-9, flops / median(their_ms) * 1e-9,
        median(shares), shares.front(), shares.back(), options.rounds, to_string(config));
    std::fflush(stdout);
  }

 private:
  [[nodiscard]] std::size_t output_bytes() const {
    return static_cast<std::size_t>(shape_.tokens * shape_.features) * 2;
  }
  double error() {
    return relative_error(ours_.as<__nv_bfloat16>(), theirs_.as<__nv_bfloat16>(),
                          shape_.tokens * shape_.features, sums_.as<double>(), stream_.get());
  }
  void report_wrong(const GroupedGemmConfig& config, double error) const {
    fmt::print("{{\"shape\":\"{}\",\"verified\":false,\"relative_error\":{},\"config\":\"{}\"}}\n",
               shape_.name, error, to_string(config));
    std::fflush(stdout);
  }

  DenseShape shape_;
  const DeviceFacts& facts_;
  Stream stream_;
  Timer timer_;
  DeviceBuffer x_, w_, theirs_, ours_, sums_, offsets_, counters_, packed_, list_;
  Library library_;
  GroupedGemmSpec spec_;
  GroupedGemmConfig chosen_;
};

Options parse(Arguments arguments) {
  Options options;
  options.block_ms = static_cast<int>(arguments.number("--block", options.block_ms));
  options.rounds = static_cast<int>(arguments.number("--rounds", options.rounds));
  options.together = arguments.numbers("--together", {});
  options.shapes = arguments.words();
  return options;
}

int run(const Options& options) {
  const CudaDevice device{LayerOptions()};
  if (!device.unavailable().empty()) {
    std::fprintf(stderr, "%s\n", device.unavailable().c_str());
    return 1;
  }
  fmt::print("{{\"device\":\"{}\",\"multiprocessors\":{},\"cublaslt\":{}}}\n", device.facts().name,
             device.facts().multiprocessors, cublasLtGetVersion());
  std::fflush(stdout);
  for (const DenseShape& shape : kShapes) {
    const auto& wanted = options.shapes;
    if (!wanted.empty() && std::find(wanted.begin(), wanted.end(), shape.name) == wanted.end()) {
      continue;
    }
    DenseProblem problem(shape, device.facts());
    problem.time(problem.chosen(), options);
    for (const std::int64_t tiles : options.together) {
      GroupedGemmConfig config = problem.chosen();
      config.tiles_together = static_cast<int>(tiles);
      problem.time(config, options);
    }
  }
  return 0;
}

}  // namespace
}  // namespace moe::cuda

int main(int argc, char** argv) {
  try {
    return moe::cuda::run(moe::cuda::parse({argc, argv}));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
