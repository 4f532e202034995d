#include "checkpoint/load.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstring>
#include <exception>
#include <limits>
#include <vector>
#ifdef _OPENMP
#include <omp.h>
#endif

#include "checkpoint/json_text.h"
#include "checkpoint/stored_values.h"
#include "core/check.h"
#include "core/dispatch.h"

namespace moe::checkpoint {
namespace {

constexpr std::int64_t kScaleBlock = 128;  // FP8: rows and columns that share a scale
constexpr std::int64_t kMxBlock = 32;      // MXFP4: columns that share a scale
constexpr std::int64_t kNone = std::numeric_limits<std::int64_t>::max();
/// Bytes that are copied out of a file and then looked at, while they are in the second level.
constexpr std::int64_t kCopiedBytes = std::int64_t{256} << 10;
/// The same where a copy on the stack is widened.
constexpr std::int64_t kWidenedBytes = std::int64_t{64} << 10;

/// Where element (row, column) of a matrix lies among the elements of a stored tensor.
struct Place {
  std::int64_t first = 0;
  std::int64_t row_step = 0;
  std::int64_t column_step = 1;
};

/// A matrix in the caller's memory.
struct Target {
  TensorView view;  // any rank; filled as [rows, columns]
  std::int64_t rows = 0;
  std::int64_t columns = 0;
};

/// "[3,17]" for the element number `index` of a tensor of `shape`.
std::string describe_place(const std::vector<std::int64_t>& shape, std::int64_t index) {
  std::vector<std::int64_t> place(shape.size());
  for (std::size_t axis = shape.size(); axis-- > 0;) {
    place[axis] = index % shape[axis];
    index /= shape[axis];
  }
  return describe_shape(place);
}

/// Whether the matrix's values lie in the tensor one behind the other and are, bit by bit or with zeros
/// behind them, those of the caller's type: BF16, or F32 as fp32.
bool copies(const StoredTensor& stored, const Place& place, const Target& to) {
  const bool exact = stored.type == StoredType::kBF16 ||
                     (stored.type == StoredType::kF32 && to.view.dtype == DType::kF32);
  return exact && place.column_step == 1 && (place.row_step == to.columns || to.rows == 1);
}

/// What one decoding found, over all threads.
struct Faults {
  std::atomic<std::int64_t> first{kNone};  // smallest index of a value that is not finite
  std::atomic<bool> rounded{false};

  void note(std::int64_t index) {
    std::int64_t seen = first.load();
    while (index < seen && !first.compare_exchange_weak(seen, index)) {
    }
  }
};

class Loader {
 public:
  [[nodiscard]] bool exact() const { return exact_; }

  /// Fills `to` from F32, BF16 or F16 values.
  void plain(const Located& from, const Place& place, const Target& to) {
    const StoredTensor& stored = *from.tensor;
    const bool copied = copies(stored, place, to);
    with_reader(stored.type, [&]<class Read>() {
      with_element_type(to.view.dtype, [&]<class Element>() {
        decode(from, to, place, [&](Faults& faults) {
          if constexpr (kKeepsValues<Read, Element>) {
            if (copied) return copy<Read, Element>(from, place, to, faults);
          }
          if (place.column_step == 1) {
            plain_rows<Read, Element>(stored.data.data(), place, to, faults);
          } else {
            plain_columns<Read, Element>(stored.data.data(), place, to, faults);
          }
        });
      });
    });
  }

  /// Fills `to` from F8_E4M3 values, each times the scale of its block.
  void block_fp8(const Part& from, const Target& to) {
    check_scales(from.scales);
    const Place place{0, to.columns, 1};
    with_reader(from.scales.tensor->type, [&]<class ReadScale>() {
      with_element_type(to.view.dtype, [&]<class Element>() {
        decode(from.at, to, place, [&](Faults& faults) {
          fp8_rows<ReadScale, Element>(*from.at.tensor, *from.scales.tensor, to, faults);
        });
      });
    });
  }

  /// Fills `to` from MXFP4 blocks; row r of the matrix is row first_row + r * row_step of the tensor.
  void mxfp4(const Located& blocks, const Located& scales, std::int64_t first_row,
             std::int64_t row_step, const Target& to) {
    const Place place{first_row * to.columns, row_step * to.columns, 1};
    with_element_type(to.view.dtype, [&]<class Element>() {
      decode(blocks, to, place, [&](Faults& faults) {
        mxfp4_rows<Element>(*blocks.tensor, *scales.tensor, first_row, row_step, to, faults);
      });
    });
  }

  /// Block scales of FP8 weights: finite and above 0.
  static void check_scales(const Located& scales) {
    const StoredTensor& tensor = *scales.tensor;
    with_reader(tensor.type, [&]<class Read>() {
      for (std::int64_t i = 0; i < tensor.elements(); ++i) {
        const float scale = Read::at(tensor.data.data(), i);
        if (!(scale > 0 && std::isfinite(scale))) fail_scale(scales, i, scale);
      }
    });
  }
  /// Scales of MXFP4: bytes that stand for powers of two, 255 for NaN.
  static void check_mx_scales(const Located& scales) {
    const auto& data = scales.tensor->data;
    const auto* at = std::memchr(data.data(), 255, data.size());
    if (at != nullptr) {
      fail_scale(scales, static_cast<const std::byte*>(at) - data.data(), float_of_e8m0(255));
    }
  }

 private:
  [[noreturn]] static void fail_scale(const Located& scales, std::int64_t index, float scale) {
    fail(ErrorCode::kIo, "{}: tensor {} has the scale {} at {}, but scales are finite and above 0",
         scales.shard->name(), quote_name(scales.tensor->name), scale,
         describe_place(scales.tensor->shape, index));
  }

  template <class Run>
  void decode(const Located& from, const Target& to, const Place& place, const Run& run) {
    Faults faults;
    run(faults);
    if (faults.rounded) exact_ = false;
    const std::int64_t bad = faults.first;
    if (bad == kNone) return;
    const std::int64_t index =
        place.first + bad / to.columns * place.row_step + bad % to.columns * place.column_step;
    // The shape of the values: MXFP4 holds 32 of them in 16 bytes.
    std::vector<std::int64_t> shape = from.tensor->shape;
    if (from.tensor->type == StoredType::kU8) {
      shape.pop_back();
      shape.back() *= kMxBlock;
    }
    fail(ErrorCode::kIo, "{}: tensor {} holds a value at {} that is not finite as {}",
         from.shard->name(), quote_name(from.tensor->name), describe_place(shape, index),
         name_of(to.view.dtype));
  }

  /// Notes the first of `count` values that is not finite; out[0] is number `first` of the matrix.
  template <class Element>
  static void note(const Element* out, std::int64_t count, std::int64_t first, Faults& faults) {
    const auto* bad =
        std::find_if(out, out + count, [](Element value) { return !is_finite(to_float(value)); });
    faults.note(first + (bad - out));
  }
  template <class Element>
  static void note_row(const Target& to, std::int64_t row, Faults& faults) {
    note(to.view.as<Element>() + row * to.columns, to.columns, row * to.columns, faults);
  }

  /// A chunk of the file after the other, without mapping its pages. Exceptions wait until the threads
  /// have met.
  template <class Read, class Element>
  static void copy(const Located& from, const Place& place, const Target& to, Faults& faults) {
    using Bits = typename Read::Bits;
    constexpr bool kStraight = sizeof(Bits) == sizeof(Element);
    constexpr auto kSize = static_cast<std::int64_t>(sizeof(Bits));
    constexpr std::int64_t kChunk = (kStraight ? kCopiedBytes : kWidenedBytes) / kSize;
    const std::int64_t count = to.rows * to.columns;
    std::exception_ptr error;
#pragma omp parallel for schedule(static)
    for (std::int64_t first = 0; first < count; first += kChunk) {
      const std::int64_t elements = std::min(kChunk, count - first);
      Element* out = to.view.as<Element>() + first;
      std::array<std::byte, kStraight ? 1 : kWidenedBytes> staged;
      std::byte* bits = kStraight ? reinterpret_cast<std::byte*>(out) : staged.data();
      try {
        const auto begin = static_cast<std::size_t>((place.first + first) * kSize);
        from.shard->copy(
            from.tensor->data.subspan(begin, static_cast<std::size_t>(elements * kSize)), bits);
      } catch (...) {
#pragma omp critical(moe_checkpoint_copy)
        error = std::current_exception();
        continue;
      }
      if constexpr (!kStraight) widen(bits, out, elements);
      if (any_special<Bits>(bits, elements)) note(out, elements, first, faults);
    }
    if (error) std::rethrow_exception(error);
  }

  template <class Read, class Element>
  static void plain_rows(const std::byte* data, const Place& place, const Target& to,
                         Faults& faults) {
#pragma omp parallel for schedule(static)
    for (std::int64_t row = 0; row < to.rows; ++row) {
      const std::int64_t begin = place.first + row * place.row_step;
      bool rounded = false;
      if (write_row(to.view.as<Element>() + row * to.columns, to.columns, rounded,
                    [&](std::int64_t column) { return Read::at(data, begin + column); })) {
        note_row<Element>(to, row, faults);
      }
      if (rounded) faults.rounded = true;
    }
  }

  /// Rows of the matrix are columns of the tensor: a block of rows at a time, so that a cache line of
  /// the tensor is used up before the next one.
  template <class Read, class Element>
  static void plain_columns(const std::byte* data, const Place& place, const Target& to,
                            Faults& faults) {
    constexpr std::int64_t kBlock = 32;
    const std::int64_t blocks = (to.rows + kBlock - 1) / kBlock;
#pragma omp parallel for schedule(static)
    for (std::int64_t block = 0; block < blocks; ++block) {
      const std::int64_t first_row = block * kBlock;
      const std::int64_t rows = std::min(kBlock, to.rows - first_row);
      bool rounded = false;
      for (std::int64_t column = 0; column < to.columns; ++column) {
        const std::int64_t begin =
            place.first + first_row * place.row_step + column * place.column_step;
        Element* out = to.view.as<Element>() + first_row * to.columns + column;
        for (std::int64_t row = 0; row < rows; ++row) {
          const float value = Read::at(data, begin + row * place.row_step);
          const Element element = from_float<Element>(value);
          out[row * to.columns] = element;
          if (!is_finite(to_float(element))) {
            faults.note((first_row + row) * to.columns + column);
          }
          rounded |= to_float(element) != value;
        }
      }
      if (rounded) faults.rounded = true;
    }
  }

  template <class ReadScale, class Element>
  static void fp8_rows(const StoredTensor& weight, const StoredTensor& scales, const Target& to,
                       Faults& faults) {
    static const std::array<float, 256> values = [] {
      std::array<float, 256> table{};
      for (std::size_t bits = 0; bits < table.size(); ++bits) {
        table[bits] = float_of_e4m3(static_cast<std::uint8_t>(bits));
      }
      return table;
    }();
    const std::int64_t scale_columns = scales.shape[1];
#pragma omp parallel for schedule(static)
    for (std::int64_t row = 0; row < to.rows; ++row) {
      bool rounded = false;
      bool bad = false;
      for (std::int64_t block = 0; block < scale_columns; ++block) {
        const std::int64_t column = block * kScaleBlock;
        const std::int64_t at = row * to.columns + column;
        const float scale =
            ReadScale::at(scales.data.data(), row / kScaleBlock * scale_columns + block);
        bad |= write_row(to.view.as<Element>() + at, std::min(kScaleBlock, to.columns - column),
                         rounded, [&](std::int64_t i) {
                           return values[bits_at<std::uint8_t>(weight.data.data(), at + i)] * scale;
                         });
      }
      if (bad) note_row<Element>(to, row, faults);
      if (rounded) faults.rounded = true;
    }
  }

  template <class Element>
  static void mxfp4_rows(const StoredTensor& blocks, const StoredTensor& scales,
                         std::int64_t first_row, std::int64_t row_step, const Target& to,
                         Faults& faults) {
    static const std::array<float, 16> values = [] {
      std::array<float, 16> table{};
      for (std::size_t bits = 0; bits < table.size(); ++bits) {
        table[bits] = float_of_e2m1(static_cast<std::uint8_t>(bits));
      }
      return table;
    }();
    const std::int64_t row_blocks = to.columns / kMxBlock;
#pragma omp parallel for schedule(static)
    for (std::int64_t row = 0; row < to.rows; ++row) {
      bool rounded = false;
      bool bad = false;
      for (std::int64_t block = 0; block < row_blocks; ++block) {
        const std::int64_t at = (first_row + row * row_step) * row_blocks + block;
        const float scale = float_of_e8m0(bits_at<std::uint8_t>(scales.data.data(), at));
        const std::byte* bytes = blocks.data.data() + at * (kMxBlock / 2);
        bad |= write_row(to.view.as<Element>() + row * to.columns + block * kMxBlock, kMxBlock,
                         rounded, [&](std::int64_t i) {
                           const auto pair = bits_at<std::uint8_t>(bytes, i / 2);
                           return values[i % 2 == 0 ? pair & 15U : pair >> 4U] * scale;
                         });
      }
      if (bad) note_row<Element>(to, row, faults);
      if (rounded) faults.rounded = true;
    }
  }

  std::atomic<bool> exact_{true};
};

/// Element [slice] of a tensor's first dimension.
TensorView slice_of(const TensorView& tensor, std::int64_t slice) {
  TensorView part = tensor;
  part.rank = tensor.rank - 1;
  for (std::size_t axis = 0; axis + 1 < part.dims.size(); ++axis) {
    part.dims[axis] = tensor.dims[axis + 1];
  }
  part.dims.back() = 0;
  part.data =
      tensor.as<std::byte>() +
      static_cast<std::size_t>(slice) * (tensor.bytes() / static_cast<std::size_t>(tensor.dim(0)));
  return part;
}

/// The bytes of one expert in a tensor whose first dimension counts experts.
std::span<const std::byte> bytes_of(const StoredTensor& tensor, std::int64_t expert) {
  const std::size_t size = tensor.data.size() / static_cast<std::size_t>(tensor.shape[0]);
  return tensor.data.subspan(static_cast<std::size_t>(expert) * size, size);
}

int max_threads() {
#ifdef _OPENMP
  return omp_get_max_threads();
#else
  return 1;  // as the fuzzer is built
#endif
}

/// Maps a stretch of a file while it is decoded; what is copied needs no pages.
class Visit {
 public:
  explicit Visit(std::span<const std::byte> range, bool copied = false)
      : range_(copied ? std::span<const std::byte>() : range) {
    bring_in(range_);
  }
  ~Visit() { let_go(range_); }
  Visit(const Visit&) = delete;
  Visit& operator=(const Visit&) = delete;

 private:
  std::span<const std::byte> range_;
};

class LayerLoader {
 public:
  LayerLoader(const LayerPlan& plan, DType dtype) : plan_(plan), dtype_(dtype) {}

  LayerContents run() {
    const std::int64_t e = plan_.experts;
    const std::int64_t h = plan_.hidden;
    const std::int64_t i = plan_.intermediate;
    validate({.tokens = 1, .hidden = h, .intermediate = i, .experts = e, .top_k = 1});
    OwnedWeights& weights = out_.weights;
    weights = {.router = Tensor(dtype_, {e, h}),
               .gate = Tensor(dtype_, {e, i, h}),
               .up = Tensor(dtype_, {e, i, h}),
               .down = Tensor(dtype_, {e, h, i})};
    whole(Role::kRouter, weights.router.view(), e, h);
    if (plan_.layout == Layout::kGptOssMxfp4) {
      Loader::check_mx_scales(part(Role::kGateUpScales).at);
      Loader::check_mx_scales(part(Role::kDownScales).at);
    }
    all_experts();
    biases();
    shared();
    out_.exact = load_.exact();
    return std::move(out_);
  }

 private:
  /// Experts side by side, each brought in, decoded and let go by one thread: a team that meets after every
  /// matrix waits longer than it copies. Few enough that their pages are a tenth of the layer; with fewer
  /// experts the threads share each one's rows instead.
  void all_experts() {
    constexpr std::int64_t kExpertsPerThread = 8;
    const auto most =
        static_cast<int>(std::max<std::int64_t>(1, plan_.experts / kExpertsPerThread));
    const int threads = std::min(most, max_threads());
    std::vector<std::exception_ptr> errors(static_cast<std::size_t>(plan_.experts));
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (threads > 1)
    for (std::int64_t expert = 0; expert < plan_.experts; ++expert) {
      try {
        experts(expert);
      } catch (...) {
        errors[static_cast<std::size_t>(expert)] = std::current_exception();
      }
    }
    for (const std::exception_ptr& error : errors) {
      if (error) std::rethrow_exception(error);
    }
  }

  [[nodiscard]] const Part& part(Role role, int expert = -1) const {
    return plan_.parts.at({role, expert});
  }

  /// A tensor that is the matrix itself.
  void whole(Role role, const TensorView& to, std::int64_t rows, std::int64_t columns,
             int expert = -1) {
    const Part& from = part(role, expert);
    const Place place{0, columns, 1};
    const Target target{to, rows, columns};
    const Visit visit(from.at.tensor->data, copies(*from.at.tensor, place, target));
    if (from.scales.tensor != nullptr) {
      load_.block_fp8(from, target);
    } else {
      load_.plain(from.at, place, target);
    }
  }

  void experts(std::int64_t expert) {
    const std::int64_t h = plan_.hidden;
    const std::int64_t i = plan_.intermediate;
    const OwnedWeights& weights = out_.weights;
    const Target gate{slice_of(weights.gate.view(), expert), i, h};
    const Target up{slice_of(weights.up.view(), expert), i, h};
    const Target down{slice_of(weights.down.view(), expert), h, i};
    const auto number = static_cast<int>(expert);
    switch (plan_.layout) {
      case Layout::kMixtral:
      case Layout::kPerExpert:
        whole(Role::kGate, gate.view, i, h, number);
        whole(Role::kUp, up.view, i, h, number);
        whole(Role::kDown, down.view, h, i, number);
        return;
      case Layout::kFused:
      case Layout::kGranite:
        gate_up(expert, {0, h, 1}, {i * h, h, 1}, gate, up);
        down_slice(expert, {0, i, 1}, down);
        return;
      case Layout::kLlama4:
        gate_up(expert, {0, 1, 2 * i}, {i, 1, 2 * i}, gate, up);
        down_slice(expert, {0, 1, h}, down);
        return;
      case Layout::kGptOss:
        gate_up(expert, {0, 2, 2 * i}, {1, 2, 2 * i}, gate, up);
        down_slice(expert, {0, 1, h}, down);
        return;
      case Layout::kGptOssMxfp4: {
        const Located& blocks = part(Role::kGateUp).at;
        const Located& scales = part(Role::kGateUpScales).at;
        {
          const Visit visit(bytes_of(*blocks.tensor, expert));
          load_.mxfp4(blocks, scales, expert * 2 * i, 2, gate);
          load_.mxfp4(blocks, scales, expert * 2 * i + 1, 2, up);
        }
        const Located& down_blocks = part(Role::kDown).at;
        const Visit visit(bytes_of(*down_blocks.tensor, expert));
        load_.mxfp4(down_blocks, part(Role::kDownScales).at, expert * h, 1, down);
        return;
      }
    }
  }

  /// Both halves of one expert's slice; the places are within the slice.
  void gate_up(std::int64_t expert, Place gate_place, Place up_place, const Target& gate,
               const Target& up) {
    const Located& from = part(Role::kGateUp).at;
    const Visit visit(bytes_of(*from.tensor, expert), copies(*from.tensor, gate_place, gate));
    const std::int64_t slice = expert * 2 * plan_.intermediate * plan_.hidden;
    gate_place.first += slice;
    up_place.first += slice;
    load_.plain(from, gate_place, gate);
    load_.plain(from, up_place, up);
  }

  void down_slice(std::int64_t expert, Place place, const Target& down) {
    const Located& from = part(Role::kDown).at;
    const Visit visit(bytes_of(*from.tensor, expert), copies(*from.tensor, place, down));
    place.first += expert * plan_.intermediate * plan_.hidden;
    load_.plain(from, place, down);
  }

  void biases() {
    const std::int64_t e = plan_.experts;
    const std::int64_t h = plan_.hidden;
    const std::int64_t i = plan_.intermediate;
    const auto vector = [&](Role role, Tensor& to) {
      if (!plan_.has(role)) return;
      to = Tensor(DType::kF32, {e});
      whole(role, to.view(), 1, e);
    };
    vector(Role::kRouterBias, out_.weights.router_bias);
    vector(Role::kSelectionBias, out_.weights.selection_bias);
    if (plan_.has(Role::kGateUpBias)) {  // of gpt-oss only: gate and up in turn
      const Located& from = part(Role::kGateUpBias).at;
      out_.weights.gate_bias = Tensor(DType::kF32, {e, i});
      out_.weights.up_bias = Tensor(DType::kF32, {e, i});
      load_.plain(from, {0, 2 * i, 2}, {out_.weights.gate_bias.view(), e, i});
      load_.plain(from, {1, 2 * i, 2}, {out_.weights.up_bias.view(), e, i});
    }
    if (plan_.has(Role::kDownBias)) {
      out_.weights.down_bias = Tensor(DType::kF32, {e, h});
      whole(Role::kDownBias, out_.weights.down_bias.view(), e, h);
    }
  }

  void shared() {
    const std::int64_t h = plan_.hidden;
    const std::int64_t s = plan_.shared;
    if (s > 0) {
      out_.weights.shared_gate = Tensor(dtype_, {s, h});
      out_.weights.shared_up = Tensor(dtype_, {s, h});
      out_.weights.shared_down = Tensor(dtype_, {h, s});
      if (plan_.has(Role::kSharedGateUp)) {
        const Located& from = part(Role::kSharedGateUp).at;
        load_.plain(from, {0, h, 1}, {out_.weights.shared_gate.view(), s, h});
        load_.plain(from, {s * h, h, 1}, {out_.weights.shared_up.view(), s, h});
      } else {
        whole(Role::kSharedGate, out_.weights.shared_gate.view(), s, h);
        whole(Role::kSharedUp, out_.weights.shared_up.view(), s, h);
      }
      whole(Role::kSharedDown, out_.weights.shared_down.view(), h, s);
    }
    if (plan_.has(Role::kSharedSwitch)) {
      out_.weights.shared_switch = Tensor(dtype_, {1, h});
      whole(Role::kSharedSwitch, out_.weights.shared_switch.view(), 1, h);
    }
  }

  const LayerPlan& plan_;
  DType dtype_;
  Loader load_;
  LayerContents out_;
};

}  // namespace

LayerContents load_layer(const LayerPlan& plan, DType dtype) {
  plan.check_complete();
  return LayerLoader(plan, dtype).run();
}

Tensor load_tensor(const Located& at, DType dtype) {
  const StoredTensor& stored = *at.tensor;
  const bool is_float = stored.type == StoredType::kF32 || stored.type == StoredType::kBF16 ||
                        stored.type == StoredType::kF16;
  if (!is_float || stored.shape.size() != 2) {
    fail(ErrorCode::kIo, "{}: tensor {} is {}, but a matrix of F32, BF16 or F16 is needed",
         at.shard->name(), quote_name(stored.name), stored.describe());
  }
  Tensor tensor(dtype, {stored.shape[0], stored.shape[1]});
  Loader().plain(at, {0, stored.shape[1], 1}, {tensor.view(), stored.shape[0], stored.shape[1]});
  return tensor;
}

}  // namespace moe::checkpoint
