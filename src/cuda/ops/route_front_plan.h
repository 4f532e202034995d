// How route_front_sm90 divides tokens and the reduction over blocks: plain arithmetic on the host.
#pragma once

#include <array>
#include <cstdint>
#include <string>

namespace moe::cuda {

/// Most experts whose logits of a tile of tokens fit into shared memory.
inline constexpr std::int64_t kMostFrontExperts = 256;

/// A cluster of `splits` blocks has tile_tokens tokens; each of its blocks adds up a part of the
/// reduction for all of them and chooses experts for tile_tokens / splits.
struct FrontPlan {
  int tile_tokens = 0;  // 32, 64, 128; 0: there is no plan, the problem is not for this kernel
  int splits = 1;       // 1, 2, 4, 8
  int clusters = 0;
  [[nodiscard]] int blocks() const { return clusters * splits; }
  bool operator==(const FrontPlan&) const = default;
};
[[nodiscard]] std::string to_string(const FrontPlan& plan);

/// What a device has room for at once.
struct FrontMachine {
  static constexpr std::array<int, 4> kSplits{1, 2, 4, 8};
  std::array<int, 4> clusters{};  // of kSplits[i] blocks, all resident
};

/// The plan that is estimated to take the fewest cycles among those whose blocks are resident at once.
[[nodiscard]] FrontPlan plan_front(std::int64_t tokens, std::int64_t hidden, std::int64_t experts,
                                   const FrontMachine& machine);

}  // namespace moe::cuda
