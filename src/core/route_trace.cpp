#include "core/route_trace.h"

#include <algorithm>
#include <bit>
#include <charconv>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>
#include <numeric>
#include <optional>
#include <string_view>

#include "core/cache_file.h"
#include "core/check.h"

namespace moe {
namespace {

using Json = nlohmann::json;

constexpr std::string_view kFormat = "moe-trace-1";
constexpr std::int64_t kMostExperts = 1 << 20;

std::string read_file(const std::string& path) {
  std::optional<std::string> bytes = read_whole(path);
  if (!bytes) fail(ErrorCode::kIo, "cannot read {}", path);
  return *std::move(bytes);
}

// --- JSON lines -----------------------------------------------------------------------------------

RouteTrace parse_jsonl(const std::string& text, const std::string& name) {
  RouteTrace trace;
  std::int64_t number = 0;
  std::int64_t rows = 0;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t end = std::min(text.find('\n', at), text.size());
    const std::string_view line(text.data() + at, end - at);
    at = end + 1;
    ++number;
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    try {
      const Json object = Json::parse(line);
      if (trace.top_k == 0) {
        MOE_CHECK(object.is_object() && object.value("format", "") == kFormat,
                  "{}: line {} is no header with \"format\": \"{}\"", name, number, kFormat);
        trace.tokens = object.at("tokens").get<std::int64_t>();
        trace.experts = object.at("experts").get<std::int64_t>();
        trace.top_k = object.at("top_k").get<std::int64_t>();
        MOE_CHECK(trace.tokens >= 1 && trace.top_k >= 1 && trace.top_k <= trace.experts &&
                      trace.experts <= kMostExperts,
                  "{}: line {}: tokens={} experts={} top_k={} cannot be", name, number,
                  trace.tokens, trace.experts, trace.top_k);
        continue;
      }
      for (const Json& index : object.at("indices")) {
        MOE_CHECK(index.is_number_integer(), "{}: line {}: index {} is no whole number", name,
                  number, index.dump());
      }
      const auto indices = object.at("indices").get<std::vector<std::int64_t>>();
      const auto weights = object.at("weights").get<std::vector<double>>();
      const auto choices = static_cast<std::size_t>(trace.top_k);
      MOE_CHECK(indices.size() == choices && weights.size() == choices,
                "{}: line {} has {} indices and {} weights, top_k is {}", name, number,
                indices.size(), weights.size(), trace.top_k);
      for (const std::int64_t index : indices) {
        MOE_CHECK(index >= 0 && index < trace.experts,
                  "{}: line {}: index {} is not below experts={}", name, number, index,
                  trace.experts);
        trace.indices.push_back(static_cast<std::int32_t>(index));
      }
      for (const double weight : weights) trace.weights.push_back(static_cast<float>(weight));
      ++rows;
    } catch (const Json::exception&) {
      fail(ErrorCode::kInvalidArgument, "{}: line {} is no {} of a trace: {}", name, number,
           trace.top_k == 0 ? "header" : "token", line.substr(0, 60));
    }
  }
  MOE_CHECK(trace.top_k > 0, "{} is empty", name);
  MOE_CHECK(rows == trace.tokens, "{} has {} tokens, its header says {}", name, rows, trace.tokens);
  return trace;
}

// --- NumPy's format: magic, version, length of the header, a Python literal, the elements -----------

struct Npy {
  std::string type;  // "<i4"
  std::int64_t rows = 0;
  std::int64_t columns = 0;
  std::string_view elements;
};

static_assert(std::endian::native == std::endian::little, "elements are copied as they lie");

/// What follows 'KEY': in the header.
std::string_view npy_value(std::string_view header, std::string_view key, const std::string& name) {
  const std::size_t at = header.find(fmt::format("'{}':", key));
  MOE_CHECK(at != std::string_view::npos, "{}: the .npy header has no '{}'", name, key);
  std::string_view value = header.substr(at + key.size() + 3);
  value.remove_prefix(std::min(value.find_first_not_of(' '), value.size()));
  return value;
}

std::size_t size_of_type(std::string_view type) {
  return type.ends_with('8') ? 8 : 4;
}

Npy parse_npy(const std::string& bytes, const std::string& name) {
  constexpr std::string_view kMagic = "\x93NUMPY";
  MOE_CHECK(bytes.size() >= 12 && bytes.starts_with(kMagic), "{} is no .npy file", name);
  const int version = static_cast<unsigned char>(bytes[6]);
  MOE_CHECK(version == 1 || version == 2, "{}: .npy version {} is not 1 or 2", name, version);
  const std::size_t prefix = version == 1 ? 10 : 12;
  std::size_t length = 0;
  for (std::size_t i = prefix; i-- > 8;) {
    length = length << 8 | static_cast<unsigned char>(bytes[i]);
  }
  MOE_CHECK(length <= bytes.size() - prefix, "{} ends within its header", name);
  const std::string_view header(bytes.data() + prefix, length);
  Npy npy;
  const std::string_view type = npy_value(header, "descr", name);
  MOE_CHECK(type.starts_with('\''), "{}: a .npy of records is no trace", name);
  npy.type = type.substr(1, std::min<std::size_t>(type.find('\'', 1), type.size()) - 1);
  MOE_CHECK(npy_value(header, "fortran_order", name).starts_with("False"),
            "{} is in Fortran order; save a C-contiguous array", name);
  const std::string_view shape = npy_value(header, "shape", name);
  const char* const end = shape.data() + shape.size();
  const auto rows = std::from_chars(shape.data() + 1, end, npy.rows);
  const std::size_t comma = shape.find(", ");
  MOE_CHECK(shape.starts_with('(') && rows.ec == std::errc() && comma != std::string_view::npos,
            "{}: shape {} is not (tokens, top_k)", name, shape.substr(0, 30));
  const auto columns = std::from_chars(shape.data() + comma + 2, end, npy.columns);
  MOE_CHECK(rows.ptr == shape.data() + comma && columns.ec == std::errc() && columns.ptr < end &&
                *columns.ptr == ')' && npy.rows >= 1 && npy.columns >= 1 &&
                npy.columns <= kMostExperts,
            "{}: shape {} is not (tokens, top_k)", name, shape.substr(0, 30));
  npy.elements = std::string_view(bytes).substr(prefix + length);
  const std::size_t row_bytes = static_cast<std::size_t>(npy.columns) * size_of_type(npy.type);
  MOE_CHECK(npy.elements.size() % row_bytes == 0 &&
                npy.elements.size() / row_bytes == static_cast<std::size_t>(npy.rows),
            "{}: {} bytes of elements are not {} x {} of {}", name, npy.elements.size(), npy.rows,
            npy.columns, npy.type);
  return npy;
}

template <class Stored, class Wanted>
std::vector<Wanted> elements_as(const Npy& npy) {
  std::vector<Wanted> out(static_cast<std::size_t>(npy.rows * npy.columns));
  for (std::size_t i = 0; i < out.size(); ++i) {
    Stored value{};
    std::memcpy(&value, npy.elements.data() + i * sizeof(Stored), sizeof(Stored));
    out[i] = static_cast<Wanted>(value);
  }
  return out;
}

RouteTrace read_npy(const std::string& path) {
  const std::string bytes = read_file(path);
  const Npy npy = parse_npy(bytes, path);
  MOE_CHECK(npy.type == "<i4" || npy.type == "<i8",
            "{}: indices are '{}', but can be int32 or int64", path, npy.type);
  RouteTrace trace{.tokens = npy.rows, .top_k = npy.columns};
  const std::vector<std::int64_t> indices = npy.type == "<i4"
                                                ? elements_as<std::int32_t, std::int64_t>(npy)
                                                : elements_as<std::int64_t, std::int64_t>(npy);
  for (std::size_t i = 0; i < indices.size(); ++i) {
    MOE_CHECK(indices[i] >= 0 && indices[i] < kMostExperts, "{}: index {} of token {} cannot be",
              path, indices[i], static_cast<std::int64_t>(i) / npy.columns);
    trace.experts = std::max(trace.experts, indices[i] + 1);
    trace.indices.push_back(static_cast<std::int32_t>(indices[i]));
  }
  const std::string beside = weights_path(path);
  if (!std::filesystem::exists(beside)) {
    trace.weights.assign(trace.indices.size(), 1.0F / static_cast<float>(trace.top_k));
    return trace;
  }
  const std::string weight_bytes = read_file(beside);
  const Npy weights = parse_npy(weight_bytes, beside);
  MOE_CHECK(weights.type == "<f4" || weights.type == "<f8",
            "{}: weights are '{}', but can be float32 or float64", beside, weights.type);
  MOE_CHECK(weights.rows == npy.rows && weights.columns == npy.columns,
            "{} is {} x {}, {} is {} x {}", beside, weights.rows, weights.columns, path, npy.rows,
            npy.columns);
  trace.weights = weights.type == "<f4" ? elements_as<float, float>(weights)
                                        : elements_as<double, float>(weights);
  return trace;
}

template <class Element>
std::string as_npy(const char* type, const RouteTrace& trace,
                   const std::vector<Element>& elements) {
  constexpr std::size_t kPrefix = 10;
  constexpr std::size_t kAlignment = 64;  // of the elements, by padding of the header
  std::string header = fmt::format("{{'descr': '{}', 'fortran_order': False, 'shape': ({}, {}), }}",
                                   type, trace.tokens, trace.top_k);
  const std::size_t unpadded = kPrefix + header.size() + 1;
  header.append((kAlignment - unpadded % kAlignment) % kAlignment, ' ');
  header += '\n';
  std::string bytes = "\x93NUMPY";
  bytes += '\x01';
  bytes += '\x00';
  bytes += static_cast<char>(header.size() & 0xff);
  bytes += static_cast<char>(header.size() >> 8);
  bytes += header;
  bytes.append(reinterpret_cast<const char*>(elements.data()), elements.size() * sizeof(Element));
  return bytes;
}

}  // namespace

void validate(const RouteTrace& trace, const std::string& name) {
  const auto elements = static_cast<std::size_t>(trace.tokens * trace.top_k);
  MOE_CHECK(trace.tokens >= 1 && trace.top_k >= 1 && trace.indices.size() == elements &&
                trace.weights.size() == elements,
            "{}: {} indices and {} weights are not {} tokens of {}", name, trace.indices.size(),
            trace.weights.size(), trace.tokens, trace.top_k);
  const auto choices = static_cast<std::size_t>(trace.top_k);
  for (std::int64_t token = 0; token < trace.tokens; ++token) {
    const std::int32_t* indices = trace.indices.data() + token * trace.top_k;
    const float* weights = trace.weights.data() + token * trace.top_k;
    double sum = 0;
    for (std::size_t slot = 0; slot < choices; ++slot) {
      MOE_CHECK(indices[slot] >= 0 && indices[slot] < trace.experts,
                "{}: token {}: index {} is not below experts={}", name, token, indices[slot],
                trace.experts);
      MOE_CHECK(std::find(indices, indices + slot, indices[slot]) == indices + slot,
                "{}: token {} has expert {} twice", name, token, indices[slot]);
      MOE_CHECK(std::isfinite(weights[slot]) && weights[slot] >= 0,
                "{}: token {}: weight {} is not finite and at least 0", name, token, weights[slot]);
      sum += weights[slot];
    }
    MOE_CHECK(sum > 0, "{}: the weights of token {} sum to 0", name, token);
  }
}

RouteTrace read_trace(const std::string& path) {
  RouteTrace trace;
  if (path.ends_with(".npy")) {
    trace = read_npy(path);
  } else {
    MOE_CHECK(path.ends_with(".jsonl"), "{} ends neither in .jsonl nor in .npy", path);
    trace = parse_jsonl(read_file(path), path);
  }
  validate(trace, path);
  return trace;
}

std::string trace_as_jsonl(const RouteTrace& trace) {
  std::string text = fmt::format(R"({{"format": "{}", "tokens": {}, "experts": {}, "top_k": {}}})",
                                 kFormat, trace.tokens, trace.experts, trace.top_k) +
                     "\n";
  const auto choices = static_cast<std::size_t>(trace.top_k);
  for (std::size_t first = 0; first < trace.indices.size(); first += choices) {
    std::string indices;
    std::string weights;
    for (std::size_t i = first; i < first + choices; ++i) {
      const char* comma = i == first ? "" : ", ";
      indices += fmt::format("{}{}", comma, trace.indices[i]);
      weights += fmt::format("{}{}", comma, trace.weights[i]);  // shortest that reads back the same
    }
    text += fmt::format(R"({{"indices": [{}], "weights": [{}]}})", indices, weights) + "\n";
  }
  return text;
}

std::string trace_indices_as_npy(const RouteTrace& trace) {
  return as_npy("<i4", trace, trace.indices);
}

std::string trace_weights_as_npy(const RouteTrace& trace) {
  return as_npy("<f4", trace, trace.weights);
}

std::string weights_path(const std::string& npy_path) {
  return npy_path.substr(0, npy_path.size() - std::string_view(".npy").size()) + ".weights.npy";
}

RouteLoad load_of(const std::vector<std::int64_t>& rows_per_expert) {
  RouteLoad load{.rows = rows_per_expert};
  const auto experts = static_cast<double>(load.rows.size());
  const auto total =
      static_cast<double>(std::accumulate(load.rows.begin(), load.rows.end(), std::int64_t{0}));
  if (total == 0) return load;
  const double mean = total / experts;
  double squares = 0;
  for (const std::int64_t rows : load.rows) {
    const auto count = static_cast<double>(rows);
    squares += (count - mean) * (count - mean);
    if (rows == 0) continue;
    ++load.active;
    load.max_over_mean = std::max(load.max_over_mean, count / mean);
    load.entropy -= count / total * std::log(count / total);
  }
  load.variation = std::sqrt(squares / experts) / mean;
  load.entropy = experts > 1 ? load.entropy / std::log(experts) : 1;
  return load;
}

RouteLoad load_of(const RouteTrace& trace) {
  std::vector<std::int64_t> rows(static_cast<std::size_t>(trace.experts));
  for (const std::int32_t expert : trace.indices) ++rows[static_cast<std::size_t>(expert)];
  return load_of(rows);
}

}  // namespace moe
