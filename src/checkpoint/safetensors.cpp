#include "checkpoint/safetensors.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "checkpoint/json_text.h"
#include "core/check.h"

namespace moe::checkpoint {
namespace {

static_assert(std::endian::native == std::endian::little, "tensors are read where they lie");

constexpr std::size_t kLengthBytes = 8;
constexpr const char* kMetadata = "__metadata__";

/// An entry of the header, before it was held against the data.
struct Entry {
  std::string name;
  std::string type;
  std::vector<std::uint64_t> shape;
  std::vector<std::uint64_t> offsets;
};

/// Reads the header as events: a document tree of a hostile header of 100 MB would take gigabytes.
class HeaderReader : public nlohmann::json_sax<nlohmann::json> {
 public:
  explicit HeaderReader(const std::string& file) : file_(file) {}

  [[nodiscard]] std::vector<Entry>& entries() { return entries_; }

  bool null() override { return unexpected("null"); }
  bool boolean(bool value) override { return unexpected(value ? "true" : "false"); }
  bool number_integer(number_integer_t value) override {
    return unexpected(std::to_string(value).c_str());
  }
  bool number_float(number_float_t /*value*/, const string_t& text) override {
    return unexpected(text.c_str());
  }
  bool binary(binary_t& /*value*/) override { return unexpected("bytes"); }

  bool number_unsigned(number_unsigned_t value) override {
    if (numbers_ == nullptr) return unexpected(std::to_string(value).c_str());
    numbers_->push_back(value);
    return true;
  }
  bool string(string_t& value) override {
    if (depth_ == 2 && in_metadata_) return true;
    if (depth_ != 2 || field_ != "dtype" || numbers_ != nullptr) {
      return unexpected(quote_name(value).c_str());
    }
    entries_.back().type = value;
    return true;
  }
  bool start_object(std::size_t /*size*/) override {
    if (depth_ >= 2 || numbers_ != nullptr) return unexpected("an object");
    ++depth_;
    if (depth_ == 2) {
      in_metadata_ = entry_ == kMetadata;
      fields_.clear();
      if (!in_metadata_) entries_.push_back({entry_, {}, {}, {}});
    }
    return true;
  }
  bool end_object() override {
    if (depth_ == 2 && !in_metadata_) {
      for (const char* field : {"dtype", "shape", "data_offsets"}) {
        if (!fields_.contains(field)) {
          fail(ErrorCode::kIo, "{}: the header gives tensor {} no {}", file_, quote_name(entry_),
               field);
        }
      }
    }
    --depth_;
    return true;
  }
  bool start_array(std::size_t /*size*/) override {
    const bool expected = depth_ == 2 && !in_metadata_ && numbers_ == nullptr;
    if (expected && field_ == "shape") {
      numbers_ = &entries_.back().shape;
    } else if (expected && field_ == "data_offsets") {
      numbers_ = &entries_.back().offsets;
    } else {
      return unexpected("an array");
    }
    return true;
  }
  bool end_array() override {
    numbers_ = nullptr;
    return true;
  }
  bool key(string_t& name) override {
    if (depth_ == 1) {
      if (!names_.insert(name).second) {
        fail(ErrorCode::kIo, "{}: the header has {} twice", file_, quote_name(name));
      }
      entry_ = name;
      field_.clear();
      return true;
    }
    if (!fields_.insert(name).second) {
      fail(ErrorCode::kIo, "{}: the header has {} twice in {}", file_, quote_name(name),
           quote_name(entry_));
    }
    if (!in_metadata_ && name != "dtype" && name != "shape" && name != "data_offsets") {
      fail(ErrorCode::kIo,
           "{}: the header has {} in tensor {}, where only dtype, shape and "
           "data_offsets can be",
           file_, quote_name(name), quote_name(entry_));
    }
    field_ = name;
    return true;
  }
  bool parse_error(std::size_t position, const std::string& /*last_token*/,
                   const nlohmann::detail::exception& /*error*/) override {
    fail(ErrorCode::kIo, "{}: the header is not JSON at its byte {}", file_, position);
  }

 private:
  [[noreturn]] bool unexpected(const char* what) {
    const std::string place = depth_ == 0 ? "in place of the header's object"
                              : depth_ == 1
                                  ? "as the entry of " + quote_name(entry_)
                                  : "as " + quote_name(field_) + " of " + quote_name(entry_);
    fail(ErrorCode::kIo, "{}: the header has {} {}", file_, what, place);
  }

  const std::string& file_;
  std::vector<Entry> entries_;
  std::set<std::string> names_;
  std::set<std::string> fields_;  // of the entry in progress
  std::string entry_;
  std::string field_;
  int depth_ = 0;
  bool in_metadata_ = false;
  std::vector<std::uint64_t>* numbers_ = nullptr;  // of the array in progress
};

std::vector<Entry> read_header(const std::string& file, std::string_view text) {
  if (text.empty() || text.front() != '{') {
    fail(ErrorCode::kIo, "{}: the header of {} bytes does not begin with '{{'", file, text.size());
  }
  HeaderReader reader(file);
  nlohmann::json::sax_parse(text.begin(), text.end(), &reader);
  return std::move(reader.entries());
}

/// The tensor that `entry` describes; its size fits its shape and its bytes lie in `data`.
StoredTensor place(const std::string& file, Entry entry, std::span<const std::byte> data) {
  const std::optional<StoredType> type = find_stored_type(entry.type);
  const std::string name = quote_name(entry.name);
  if (!type)
    fail(ErrorCode::kIo, "{}: tensor {} has the unknown type {}", file, name,
         quote_name(entry.type));
  if (entry.offsets.size() != 2) {
    fail(ErrorCode::kIo, "{}: tensor {} has {} data_offsets in place of 2", file, name,
         entry.offsets.size());
  }
  const std::uint64_t begin = entry.offsets[0];
  const std::uint64_t end = entry.offsets[1];
  if (begin > end || end > data.size()) {
    fail(ErrorCode::kIo,
         "{}: tensor {} lies at bytes {} to {}, but the file holds {} bytes of data", file, name,
         begin, end, data.size());
  }
  StoredTensor tensor{.name = std::move(entry.name), .type = *type};
  std::int64_t bits = bits_of(*type);
  for (const std::uint64_t size : entry.shape) {
    if (size > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max()) ||
        __builtin_mul_overflow(bits, static_cast<std::int64_t>(size), &bits)) {
      fail(ErrorCode::kIo, "{}: the shape of tensor {} overflows 64 bits at the size {}", file,
           name, size);
    }
    tensor.shape.push_back(static_cast<std::int64_t>(size));
  }
  if (bits % 8 != 0 || static_cast<std::uint64_t>(bits / 8) != end - begin) {
    fail(ErrorCode::kIo, "{}: tensor {} is {}, {} bytes, but its data_offsets {} to {} span {}",
         file, name, tensor.describe(), bits / 8, begin, end, end - begin);
  }
  tensor.data = data.subspan(begin, end - begin);
  return tensor;
}

/// Throws unless the tensors cover the data once.
void check_cover(const std::string& file, const std::vector<StoredTensor>& tensors,
                 std::span<const std::byte> data) {
  std::vector<const StoredTensor*> order;
  order.reserve(tensors.size());
  for (const StoredTensor& tensor : tensors) order.push_back(&tensor);
  const auto begin_of = [&](const StoredTensor* tensor) {
    return tensor->data.data() - data.data();
  };
  std::sort(order.begin(), order.end(), [&](const StoredTensor* a, const StoredTensor* b) {
    return std::pair(begin_of(a), a->data.size()) < std::pair(begin_of(b), b->data.size());
  });
  std::ptrdiff_t covered = 0;
  const StoredTensor* previous = nullptr;
  for (const StoredTensor* tensor : order) {
    const std::ptrdiff_t begin = begin_of(tensor);
    if (begin < covered) {
      fail(ErrorCode::kIo,
           "{}: tensor {} begins at byte {} of the data, where tensor {} lies (to {})", file,
           quote_name(tensor->name), begin, quote_name(previous->name), covered);
    }
    if (begin > covered) {
      fail(ErrorCode::kIo, "{}: bytes {} to {} of the data belong to no tensor", file, covered,
           begin);
    }
    covered += static_cast<std::ptrdiff_t>(tensor->data.size());
    previous = tensor;
  }
  if (covered != static_cast<std::ptrdiff_t>(data.size())) {
    fail(ErrorCode::kIo, "{}: bytes {} to {} of the data belong to no tensor", file, covered,
         data.size());
  }
}

}  // namespace

std::string describe_shape(const std::vector<std::int64_t>& shape) {
  return fmt::format("[{}]", fmt::join(shape, ","));
}

std::int64_t StoredTensor::elements() const {
  std::int64_t count = 1;
  for (const std::int64_t size : shape) count *= size;
  return count;
}

std::string StoredTensor::describe() const {
  return fmt::format("{} {}", name_of(type), describe_shape(shape));
}

SafetensorsFile::SafetensorsFile(std::string name, MappedFile file)
    : name_(std::move(name)), file_(std::move(file)) {
  read(file_.bytes());
}

SafetensorsFile::SafetensorsFile(std::string name, std::span<const std::byte> bytes)
    : name_(std::move(name)) {
  read(bytes);
}

const StoredTensor* SafetensorsFile::find(std::string_view tensor) const {
  const auto at = tensors_.find(tensor);
  return at == tensors_.end() ? nullptr : &at->second;
}

void SafetensorsFile::copy(std::span<const std::byte> range, std::byte* to) const {
  if (file_.bytes().empty()) {
    std::memcpy(to, range.data(), range.size());
  } else {
    file_.copy(range, to, name_);
  }
}

void SafetensorsFile::read(std::span<const std::byte> bytes) {
  std::uint64_t length = 0;
  if (bytes.size() < kLengthBytes) {
    fail(ErrorCode::kIo, "{} has {} bytes, but the length of a safetensors header takes {}", name_,
         bytes.size(), kLengthBytes);
  }
  std::memcpy(&length, bytes.data(), kLengthBytes);
  if (length > bytes.size() - kLengthBytes) {
    fail(ErrorCode::kIo, "{}: the header has {} bytes, but the file has {} after its length", name_,
         length, bytes.size() - kLengthBytes);
  }
  if (length > kMostJsonBytes) {
    fail(ErrorCode::kIo, "{}: the header has {} bytes, more than {}", name_, length,
         kMostJsonBytes);
  }
  const std::string_view header(reinterpret_cast<const char*>(bytes.data()) + kLengthBytes, length);
  const std::span<const std::byte> data = bytes.subspan(kLengthBytes + length);
  std::vector<StoredTensor> tensors;
  for (Entry& entry : read_header(name_, header)) {
    tensors.push_back(place(name_, std::move(entry), data));
  }
  check_cover(name_, tensors, data);
  for (StoredTensor& tensor : tensors) {
    std::string key = tensor.name;
    tensors_.emplace(std::move(key), std::move(tensor));
  }
}

}  // namespace moe::checkpoint
