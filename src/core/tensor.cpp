#include "moe/tensor.h"

#include "core/check.h"
#include "core/memory.h"

namespace moe {

TensorView::TensorView(void* pointer, DType type, std::initializer_list<std::int64_t> sizes)
    : data(pointer), dtype(type), rank(static_cast<int>(sizes.size())) {
  MOE_CHECK(sizes.size() <= dims.size(), "a tensor has at most {} dimensions, not {}", dims.size(),
            sizes.size());
  std::size_t axis = 0;
  for (const std::int64_t size : sizes) {
    MOE_CHECK(size >= 0, "dimension {} of a tensor is negative: {}", axis, size);
    dims[axis++] = size;
  }
}

std::int64_t TensorView::elements() const {
  if (rank == 0) return 0;
  std::int64_t count = 1;
  for (int axis = 0; axis < rank; ++axis) {
    MOE_CHECK(!__builtin_mul_overflow(count, dim(axis), &count), "{} overflows 64-bit offsets",
              describe());
  }
  return count;
}

std::size_t TensorView::bytes() const {
  return static_cast<std::size_t>(elements()) * size_of(dtype);
}

TensorView TensorView::first_rows(std::int64_t rows) const {
  MOE_CHECK(rank >= 1 && rows >= 0 && rows <= dims[0], "{} has no first {} rows", describe(), rows);
  TensorView part = *this;
  part.dims[0] = rows;
  return part;
}

std::string TensorView::describe() const {
  std::string text = fmt::format("{}[", name_of(dtype));
  for (int axis = 0; axis < rank; ++axis)
    text += fmt::format("{}{}", axis == 0 ? "" : ",", dim(axis));
  return text + "]";
}

Tensor::Tensor(DType dtype, std::initializer_list<std::int64_t> sizes)
    : view_(nullptr, dtype, sizes) {
  auto buffer = std::make_shared<HostBuffer>(view_.bytes());
  view_.data = buffer->data();
  storage_ = std::move(buffer);
}

}  // namespace moe
