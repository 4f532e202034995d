// The weights of all experts in a library's layout, cut into column panels.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "core/memory.h"
#include "cpu/ops/gemm_onednn.h"
#include "moe/layer.h"

namespace moe::cpu {

/// Output columns of a product, cut into panels of `width`; the last may be narrower.
struct Panels {
  std::int64_t columns = 0;
  std::int64_t width = 0;

  /// Equal panels, at most `limit` wide where 64 columns (the library's block: narrower ones are
  /// padded) allow it; their number is a multiple of `sharers` when there are columns enough.
  static Panels split(std::int64_t columns, std::int64_t limit, std::int64_t sharers);

  [[nodiscard]] std::int64_t count() const { return (columns + width - 1) / width; }
  [[nodiscard]] std::int64_t first(std::int64_t panel) const { return panel * width; }
  [[nodiscard]] std::int64_t width_of(std::int64_t panel) const {
    return std::min(width, columns - first(panel));
  }
};

/// The weight layouts of one product's panels: one for the full width, a second one when the last
/// panel is narrower.
class PanelLayouts {
 public:
  /// Every panel column stands for `matrices` columns of the GEMM: 2 for gate|up, else 1.
  PanelLayouts(DType dtype, const Panels& panels, std::int64_t matrices, std::int64_t k,
               std::int64_t typical_rows, int threads);

  [[nodiscard]] const Panels& panels() const { return panels_; }
  [[nodiscard]] std::int64_t matrices() const { return matrices_; }
  [[nodiscard]] std::size_t kinds() const { return layouts_.size(); }
  [[nodiscard]] std::size_t kind_of(std::int64_t panel) const {
    return panel + 1 == panels_.count() ? layouts_.size() - 1 : 0;
  }
  [[nodiscard]] const onednn::WeightLayout& layout(std::size_t kind) const {
    return layouts_[kind];
  }
  [[nodiscard]] std::uint64_t packed_bytes() const;  ///< of one expert, all panels

 private:
  Panels panels_;
  std::int64_t matrices_;
  std::vector<onednn::WeightLayout> layouts_;
};

/// The layouts of all products of a layer.
struct ExpertLayouts {
  /// For GEMMs of `threads` threads. `router_rows` and `expert_rows` are typical values of m. Without
  /// a gate matrix the first product is up alone.
  ExpertLayouts(const Problem& problem, const Panels& gate_up_panels, const Panels& down_panels,
                std::int64_t router_rows, std::int64_t expert_rows, int threads);

  /// Of that many experts and the router, if the problem has one.
  [[nodiscard]] std::uint64_t packed_bytes(std::int64_t experts) const;

  bool routed;
  onednn::WeightLayout router;  // n = E
  PanelLayouts gate_up;         // n = 2·width: gate columns of the panel, then its up columns
  PanelLayouts down;            // n = width
};

/// Packs the matrices of all experts, the shared one's parts among them, and of the router once; the
/// caller's are not needed afterwards.
class PackedExperts {
 public:
  PackedExperts(const ExpertLayouts& layouts, const Problem& problem, const Weights& weights);

  [[nodiscard]] const onednn::PackedMatrix& router() const { return router_.front(); }
  [[nodiscard]] const onednn::PackedMatrix& gate_up(std::int64_t expert, std::int64_t panel) const {
    return gate_up_[static_cast<std::size_t>(expert * gate_up_panels_ + panel)];
  }
  [[nodiscard]] const onednn::PackedMatrix& down(std::int64_t expert, std::int64_t panel) const {
    return down_[static_cast<std::size_t>(expert * down_panels_ + panel)];
  }

 private:
  std::int64_t gate_up_panels_;
  std::int64_t down_panels_;
  HostBuffer storage_;
  std::vector<onednn::PackedMatrix> router_;   // one; none for given routes
  std::vector<onednn::PackedMatrix> gate_up_;  // [E · panels]
  std::vector<onednn::PackedMatrix> down_;     // [E · panels]
};

}  // namespace moe::cpu
