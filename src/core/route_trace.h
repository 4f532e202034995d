// Recorded routes: which experts each token chose, with what weights. docs/routing.md describes the
// files.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace moe {

struct RouteTrace {
  std::int64_t tokens = 0;
  std::int64_t experts = 0;  ///< of the model; where a file does not say, the highest index plus 1
  std::int64_t top_k = 0;
  std::vector<std::int32_t>
      indices{};  ///< [T,K], each row without repetition, 0 <= index < experts
  /// [T,K], finite and at least 0, each row with a sum above 0, which need not be 1.
  std::vector<float> weights{};
};

/// Throws kInvalidArgument with the token unless everything above holds; `name` stands in the message.
void validate(const RouteTrace& trace, const std::string& name);

/// Reads NAME.jsonl, or NAME.npy with the indices and, where it exists, NAME.weights.npy (without it
/// all K weights are equal). Throws kIo for a file that cannot be read and kInvalidArgument, with the
/// line or the token, for one that is damaged.
[[nodiscard]] RouteTrace read_trace(const std::string& path);

/// The text of a .jsonl file.
[[nodiscard]] std::string trace_as_jsonl(const RouteTrace& trace);
/// The bytes of the two .npy files: int32 and float32, version 1.0, in C order.
[[nodiscard]] std::string trace_indices_as_npy(const RouteTrace& trace);
[[nodiscard]] std::string trace_weights_as_npy(const RouteTrace& trace);
/// "x.npy" -> "x.weights.npy"
[[nodiscard]] std::string weights_path(const std::string& npy_path);

/// How rows spread over experts.
struct RouteLoad {
  std::vector<std::int64_t> rows;  ///< per expert
  std::int64_t active = 0;         ///< experts with at least one row
  double max_over_mean = 0;
  double variation = 0;  ///< standard deviation over mean
  double entropy = 0;    ///< of the shares, over that of equal ones; 1 is even
};
[[nodiscard]] RouteLoad load_of(const std::vector<std::int64_t>& rows_per_expert);
[[nodiscard]] RouteLoad load_of(const RouteTrace& trace);

}  // namespace moe
