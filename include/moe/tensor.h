// Tensors: a non-owning view and an owning, 64-byte-aligned host buffer. Always dense and
// row-major.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <string>

#include "moe/config.h"

namespace moe {

/// A pointer, an element type and up to four sizes; the last dimension is contiguous.
/// The view owns nothing: the memory must outlive it. On the CUDA backend `data` is a device
/// pointer.
struct TensorView {
  void* data = nullptr;
  DType dtype = DType::kF32;
  int rank = 0;
  std::array<std::int64_t, 4> dims{};

  TensorView() = default;
  TensorView(void* pointer, DType type, std::initializer_list<std::int64_t> sizes);

  [[nodiscard]] std::int64_t dim(int axis) const { return dims[static_cast<std::size_t>(axis)]; }
  [[nodiscard]] std::int64_t elements() const;
  [[nodiscard]] std::size_t bytes() const;
  /// The first `rows` rows, same memory.
  [[nodiscard]] TensorView first_rows(std::int64_t rows) const;
  /// "bf16[512,1024]"
  [[nodiscard]] std::string describe() const;

  template <class Element>
  [[nodiscard]] Element* as() const {
    return static_cast<Element*>(data);
  }
};

/// Owning host tensor. Movable, not copyable. Memory is page-aligned and zero.
class Tensor {
 public:
  Tensor() = default;
  Tensor(DType dtype, std::initializer_list<std::int64_t> sizes);

  [[nodiscard]] const TensorView& view() const { return view_; }
  template <class Element>
  [[nodiscard]] Element* as() const {
    return view_.as<Element>();
  }

 private:
  TensorView view_;
  std::shared_ptr<void> storage_;
};

}  // namespace moe
