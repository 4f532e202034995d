#include "cpu/ops/packed_experts.h"

#include <algorithm>
#include <cstring>

#include "core/expert_set.h"

namespace moe::cpu {
namespace {

constexpr std::int64_t kColumnBlock = 64;

std::int64_t divide_up(std::int64_t value, std::int64_t by) {
  return (value + by - 1) / by;
}

}  // namespace

Panels Panels::split(std::int64_t columns, std::int64_t limit, std::int64_t sharers) {
  const std::int64_t blocks = divide_up(columns, kColumnBlock);
  const std::int64_t blocks_per_panel = std::max<std::int64_t>(limit / kColumnBlock, 1);
  const std::int64_t count = divide_up(divide_up(blocks, blocks_per_panel), sharers) * sharers;
  return {columns, std::min(columns, divide_up(blocks, count) * kColumnBlock)};
}

PanelLayouts::PanelLayouts(DType dtype, const Panels& panels, std::int64_t matrices, std::int64_t k,
                           std::int64_t typical_rows, int threads)
    : panels_(panels), matrices_(matrices) {
  layouts_.emplace_back(dtype, matrices * panels.width, k, typical_rows, threads);
  const std::int64_t last = panels.width_of(panels.count() - 1);
  if (last != panels.width) layouts_.emplace_back(dtype, matrices * last, k, typical_rows, threads);
}

std::uint64_t PanelLayouts::packed_bytes() const {
  std::uint64_t bytes = 0;
  for (std::int64_t panel = 0; panel < panels_.count(); ++panel) {
    bytes += round_up(layouts_[kind_of(panel)].bytes(), kArenaAlignment);
  }
  return bytes;
}

ExpertLayouts::ExpertLayouts(const Problem& problem, const Panels& gate_up_panels,
                             const Panels& down_panels, std::int64_t router_rows,
                             std::int64_t expert_rows, int threads)
    : routed(problem.router.scoring != Scoring::kGiven),
      router(problem.dtype, problem.shape.experts, problem.shape.hidden, router_rows, threads),
      gate_up(problem.dtype, gate_up_panels, problem.activation.gated() ? 2 : 1,
              problem.shape.hidden, expert_rows, threads),
      down(problem.dtype, down_panels, 1, problem.shape.intermediate, expert_rows, threads) {}

std::uint64_t ExpertLayouts::packed_bytes(std::int64_t experts) const {
  return (routed ? round_up(router.bytes(), kArenaAlignment) : 0) +
         static_cast<std::uint64_t>(experts) * (gate_up.packed_bytes() + down.packed_bytes());
}

PackedExperts::PackedExperts(const ExpertLayouts& layouts, const Problem& problem,
                             const Weights& weights)
    : gate_up_panels_(layouts.gate_up.panels().count()),
      down_panels_(layouts.down.panels().count()),
      storage_(layouts.packed_bytes(with_shared_slots(problem).experts)) {
  const Shape& shape = problem.shape;
  const ExpertSet experts(problem, weights);
  const std::size_t element = size_of(problem.dtype);
  const std::size_t gate_row = static_cast<std::size_t>(shape.hidden) * element;
  const std::size_t down_row = static_cast<std::size_t>(shape.intermediate) * element;
  const Panels& wide = layouts.gate_up.panels();
  const Panels& narrow = layouts.down.panels();
  Arena storage(storage_.data(), storage_.size());
  const auto pack = [&](const onednn::WeightLayout& layout, const void* rows) {
    return onednn::PackedMatrix(layout, rows,
                                storage.take<std::byte>(static_cast<std::int64_t>(layout.bytes())));
  };
  if (layouts.routed) router_.push_back(pack(layouts.router, weights.router.data));
  gate_up_.reserve(static_cast<std::size_t>(experts.count() * gate_up_panels_));
  down_.reserve(static_cast<std::size_t>(experts.count() * down_panels_));
  const HostBuffer staging(std::max(2 * static_cast<std::size_t>(wide.width) * gate_row,
                                    static_cast<std::size_t>(narrow.width) * down_row));
  auto* rows = staging.as<std::byte>();
  for (std::int64_t number = 0; number < experts.count(); ++number) {
    const ExpertMatrices expert = experts.at(number);
    for (std::int64_t panel = 0; panel < gate_up_panels_; ++panel) {
      const std::size_t bytes = static_cast<std::size_t>(wide.width_of(panel)) * gate_row;
      // What a narrower part of the shared expert does not have is zero.
      const std::int64_t given =
          std::clamp<std::int64_t>(expert.width - wide.first(panel), 0, wide.width_of(panel));
      const std::size_t given_bytes = static_cast<std::size_t>(given) * gate_row;
      const std::size_t first = static_cast<std::size_t>(wide.first(panel)) * gate_row;
      std::byte* to = rows;
      for (const std::byte* matrix : {expert.gate, expert.up}) {
        if (matrix == nullptr) continue;
        std::memcpy(to, matrix + first, given_bytes);
        std::memset(to + given_bytes, 0, bytes - given_bytes);
        to += bytes;
      }
      gate_up_.push_back(pack(layouts.gate_up.layout(layouts.gate_up.kind_of(panel)), rows));
    }
    const auto stride = static_cast<std::size_t>(expert.down_stride);
    for (std::int64_t panel = 0; panel < down_panels_; ++panel) {
      const auto first = static_cast<std::size_t>(narrow.first(panel));
      const std::byte* from = expert.down + first * stride;
      if (stride != down_row) {
        const std::size_t given = static_cast<std::size_t>(expert.width) * element;
        for (std::size_t row = 0; row < static_cast<std::size_t>(narrow.width_of(panel)); ++row) {
          std::memcpy(rows + row * down_row, from + row * stride, given);
          std::memset(rows + row * down_row + given, 0, down_row - given);
        }
        from = rows;
      }
      down_.push_back(pack(layouts.down.layout(layouts.down.kind_of(panel)), from));
    }
  }
}

}  // namespace moe::cpu
