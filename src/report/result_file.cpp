#include "report/result_file.h"

#include <cmath>
#include <optional>

#include "core/cache_file.h"
#include "core/check.h"
#include "report/report.h"

namespace moe::report {
namespace {

using Json = nlohmann::json;

/// A member that may be null or, in an older file, missing.
template <class Value>
Value value_or(const Json& object, const char* name, Value otherwise) {
  const auto found = object.find(name);
  return found == object.end() || found->is_null() ? otherwise : found->get<Value>();
}

/// A time or a rate: finite and above zero, or the file is damaged.
double positive(const Json& object, const char* name, const std::string& where) {
  const double value = object.at(name).get<double>();
  MOE_CHECK(std::isfinite(value) && value > 0, "{}: {}={} must be above 0", where, name, value);
  return value;
}

RowKey key_of(const Json& row) {
  RowKey key;
  key.level = row.at("name").get<std::string>();
  key.problem.shape = {.tokens = row.at("tokens").get<std::int64_t>(),
                       .hidden = row.at("hidden").get<std::int64_t>(),
                       .intermediate = row.at("intermediate").get<std::int64_t>(),
                       .experts = row.at("experts").get<std::int64_t>(),
                       .top_k = row.at("top_k").get<std::int64_t>()};
  key.problem.dtype = parse_dtype(row.at("dtype").get<std::string>());
  set_block_options(key.problem, value_or<std::string>(row, "block", ""));
  validate(key.problem);
  key.backend = name_of(parse_backend(row.at("backend").get<std::string>()));
  // Before these fields existed only the CPU was measured: hot, call by call.
  key.launch = value_or<std::string>(row, "launch", "eager");
  key.cache = value_or<std::string>(row, "cache", "hot");
  key.skew = row.at("skew").get<std::string>();
  key.seed = row.at("seed").get<std::uint64_t>();
  key.threads = value_or(row, "threads", 0);
  return key;
}

RowTimes times_of(const Json& row, int samples, const std::string& where) {
  RowTimes times;
  times.median_us = positive(row, "median_us", where);
  times.fastest_us = positive(row, "min_us", where);
  const auto list = row.find("sample_us");
  if (list == row.end()) {
    times.interval = median_interval(times.median_us, row.at("iqr_us").get<double>(), samples);
    return times;
  }
  const auto values = list->get<std::vector<double>>();
  MOE_CHECK(values.size() == static_cast<std::size_t>(samples),
            "{}: sample_us has {} values, samples is {}", where, values.size(), samples);
  for (const double value : values) {
    MOE_CHECK(std::isfinite(value) && value > 0, "{}: a sample of {} us", where, value);
  }
  times.interval = median_interval(values);
  return times;
}

/// The A/A noise of the row's problem, that of its cache state and launch where there are several.
double noise_of(const Json& run, const RowKey& key) {
  double relative = 0;
  for (const Json& noise : run.at("noise")) {
    if (noise.at("tokens").get<std::int64_t>() != key.problem.shape.tokens) continue;
    if (value_or<std::string>(noise, "cache", key.cache) != key.cache) continue;
    relative = std::max(relative, noise.at("relative").get<double>());
  }
  return relative;
}

/// The probed rate that bounds the row.
double machine_rate(const Json& ceilings, const Json& row, const RowKey& key) {
  if (value_or<std::string>(row, "bound", "") == "memory") {
    return value_or(ceilings, "read_gbs", 0.0);
  }
  const double fp32 = value_or(ceilings, "fp32_gflops", 0.0);
  return key.problem.dtype == DType::kBF16 ? value_or(ceilings, "bf16_gflops", fp32) : fp32;
}

ResultDevice device_of(const Json& document) {
  ResultDevice device;
  const Json& machine = document.at("machine");
  const Json& ceilings = document.at("ceilings");
  device.isa = ceilings.at("isa").get<std::string>();
  device.threads = ceilings.at("threads").get<int>();
  const auto gpu = document.find("device");
  if (gpu != document.end() && !gpu->is_null()) {
    device.backend = name_of(Backend::kCuda);
    device.name = gpu->at("name").get<std::string>();
    device.uuid = gpu->at("uuid").get<std::string>();
  } else {
    device.backend = name_of(Backend::kCpu);
    device.name = fmt::format("{}, {} cores", machine.at("cpu").get<std::string>(),
                              machine.at("cores").get<int>());
  }
  return device;
}

ResultRow row_of(const Json& document, const Json& source, const std::string& where) {
  ResultRow row;
  row.key = key_of(source);
  row.key.data = value_or<std::string>(document.at("run"), "data", "");
  row.level_number = source.at("level").get<int>();
  row.status = source.at("status").get<std::string>();
  row.reason = value_or<std::string>(source, "reason", "");
  row.verified = source.at("verified").get<bool>();
  row.samples = source.at("samples").get<int>();
  MOE_CHECK(row.samples >= 0, "{}: samples={} must not be negative", where, row.samples);
  row.expert_load = value_or<std::vector<std::int64_t>>(source, "expert_load", {});
  if (row.samples == 0) return row;
  row.times = times_of(source, row.samples, where);
  row.times.noise = noise_of(document.at("run"), row.key);
  if (row.key.backend == name_of(Backend::kCpu)) {
    row.times.disturbance = row.times.median_us / row.times.fastest_us - 1;
    row.times.others = value_or<double>(document.at("run"), "others_fraction", 0.0);
    for (const char* const probe : {"fp32_gflops", "bf16_gflops", "read_gbs"}) {
      row.times.probe_rates.push_back(value_or(document.at("ceilings"), probe, 0.0));
    }
  }
  row.times.machine_rate = machine_rate(document.at("ceilings"), source, row.key);
  return row;
}

ResultFile result_of(Json document, const std::string& name) {
  MOE_CHECK(document.is_object() && value_or<std::string>(document, "schema", "") == kSchema,
            "{} is no result of moe bench run --format json: it has no \"schema\": \"{}\"", name,
            kSchema);
  ResultFile file;
  file.path = name;
  const Json& run = document.at("run");
  file.suite = run.at("suite").get<std::string>();
  file.preset = value_or<std::string>(run, "preset", "");
  file.started = run.at("started").get<std::string>();
  file.commit = value_or<std::string>(document.at("machine"), "commit", "");
  file.modified = document.at("machine").at("modified").get<bool>();
  file.device = device_of(document);
  const Json& rows = document.at("rows");
  for (std::size_t i = 0; i < rows.size(); ++i) {
    file.rows.push_back(row_of(document, rows.at(i), fmt::format("{}: row {}", name, i + 1)));
  }
  file.document = std::move(document);
  return file;
}

}  // namespace

std::string ResultDevice::describe() const {
  if (!uuid.empty()) return name;
  return fmt::format("{}, up to {}", name, isa);
}

bool ResultDevice::same_kind(const ResultDevice& other) const {
  return backend == other.backend && name == other.name && isa == other.isa;
}

std::string ResultFile::describe() const {
  std::string build = commit.empty() ? "no commit" : commit.substr(0, 10);
  if (modified) build += ", modified";
  return fmt::format("{} ({}, {})", path, build, started.substr(0, 10));
}

ResultFile parse_result(const std::string& text, const std::string& name) {
  Json document;
  try {
    document = Json::parse(text);
  } catch (const Json::parse_error& error) {
    fail(ErrorCode::kInvalidArgument, "{} is no JSON: byte {} of {} cannot be read", name,
         error.byte, text.size());
  }
  try {
    return result_of(std::move(document), name);
  } catch (const Json::exception& error) {
    const std::string what = error.what();  // "[json.exception.out_of_range.403] key 'x' not found"
    fail(ErrorCode::kInvalidArgument, "{} is a damaged result: {}", name,
         what.substr(std::min(what.size(), what.find("] ") + 2)));
  } catch (const Error& error) {
    const std::string what = error.what();
    if (what.starts_with(name)) throw;
    fail(ErrorCode::kInvalidArgument, "{} is a damaged result: {}", name, what);
  }
}

ResultFile read_result(const std::string& path) {
  const std::optional<std::string> text = read_whole(path);
  if (!text) fail(ErrorCode::kIo, "cannot read {}", path);
  return parse_result(*text, path);
}

}  // namespace moe::report
