#include "cli/verify_io.h"

#include "checkpoint/json_text.h"
#include "cli/output.h"
#include "cli/verify_lines.h"
#include "core/check.h"
#include "core/device_tensor.h"
#include "core/scalar.h"
#include "verify/dump_check.h"

namespace moe::cli {
namespace {

Tensor read_matrix(const checkpoint::SafetensorsFile& file, const char* name) {
  const checkpoint::StoredTensor* stored = file.find(name);
  if (stored == nullptr) {
    fail(ErrorCode::kIo, "{} has no tensor '{}', only {} others", file.name(), name,
         file.tensors().size());
  }
  if (stored->type != checkpoint::StoredType::kF32) {
    fail(ErrorCode::kIo, "{}: tensor '{}' is {}, but --io needs F32", file.name(), name,
         stored->describe());
  }
  return checkpoint::load_tensor({stored, &file}, DType::kF32);
}

/// x as the layer takes it. What a rounding to bf16 changed would count as the levels' error.
Tensor convert(const Tensor& x, DType dtype, const std::string& path) {
  if (dtype == DType::kF32) return x;
  const std::int64_t columns = x.view().dim(1);
  Tensor out(dtype, {x.view().dim(0), columns});
  for (std::int64_t i = 0; i < x.view().elements(); ++i) {
    const float value = x.as<float>()[i];
    out.as<BFloat16>()[i] = to_bfloat16(value);
    if (to_float(out.as<BFloat16>()[i]) != value) {
      fail(ErrorCode::kInvalidArgument,
           "{}: x[{},{}] is {}, which is no bf16 number: use --dtype fp32, or round x before y is "
           "computed from it",
           path, i / columns, i % columns, value);
    }
  }
  return out;
}

}  // namespace

Dump read_dump(const std::string& path) {
  const checkpoint::SafetensorsFile file(path, checkpoint::MappedFile(path));
  Dump dump{read_matrix(file, "x"), read_matrix(file, "y")};
  const TensorView& x = dump.x.view();
  const TensorView& y = dump.y.view();
  if (x.dims != y.dims || x.dim(0) < 1) {
    fail(ErrorCode::kIo, "{}: x is {} and y is {}, but both are [T,H] with at least one row", path,
         x.describe(), y.describe());
  }
  return dump;
}

ExitCode verify_dump(Workload workload, const std::string& path,
                     const std::vector<LevelInfo>& levels) {
  const Dump dump = read_dump(path);
  Problem& problem = workload.layer.problem;
  const TensorView& given = dump.x.view();
  MOE_CHECK(given.dim(1) == problem.shape.hidden, "{}: x is {}, but H={} in {}", path,
            given.describe(), problem.shape.hidden, workload.checkpoint->text);
  problem.shape.tokens = given.dim(0);
  validate(problem);
  const Tensor x = convert(dump.x, problem.dtype, path);
  const checkpoint::LayerContents contents = load_weights(*workload.checkpoint, problem);
  MOE_CHECK(
      contents.exact,
      "{} has weights that are no {} numbers: use --dtype fp32, or compute y from rounded ones",
      workload.checkpoint->text, name_of(problem.dtype));
  const Weights weights = contents.weights.view();
  DumpCheck check(problem, weights, x.view(), dump.y.view());
  const std::unique_ptr<Device> device = make_device(workload.layer);
  DeviceWeights placed;
  if (device->unavailable().empty()) placed = DeviceWeights::of(*device, weights);

  VerifyLines lines;
  const std::string problem_text =
      fmt::format("{} {}", name_of(problem.dtype), to_string(problem.shape));
  lines.add(fmt::format("- {:<13} {}", "fp64 oracle", problem_text), [&] {
    const Comparison comparison = check.of_expected();
    return VerifyLine{comparison.passed, comparison.describe()};
  });
  lines.forget_success();  // that the file is right says nothing of any level
  for (const LevelInfo& level : levels) {
    LayerOptions options = workload.layer;
    options.level = level.name;
    lines.add(fmt::format("{} {:<13} {}", level.number, level.name, problem_text), [&] {
      (void)Layer::predict(options);  // a level that cannot run says so before the weights are used
      Layer layer = Layer::create(options, placed.view());
      const Comparison comparison = check.of(layer);
      return VerifyLine{comparison.passed, comparison.describe()};
    });
  }
  return lines.exit_code();
}

}  // namespace moe::cli
