// Layer: checks arguments, picks the level, predicts memory, owns level and arena.
#include "moe/layer.h"

#include <array>
#include <chrono>
#include <cstdlib>
#include <string_view>

#include "core/backend.h"
#include "core/isa.h"
#include "core/level.h"
#include "core/text.h"
#include "core/threads.h"
#include "core/weight_tensors.h"
#include "core/workload.h"

namespace moe {
namespace {

constexpr int kMaxThreads = 4096;

ExecutionOptions resolve(const LayerOptions& options, Device& device) {
  validate(options.problem);
  MOE_CHECK(options.threads >= 0 && options.threads <= kMaxThreads,
            "threads={} must lie between 0 (all) and {}", options.threads, kMaxThreads);
  MOE_CHECK(options.tune_seconds >= 0, "tune_seconds={} must not be negative",
            options.tune_seconds);
  const Skew tune_skew = Skew::parse(options.tune_skew);
  MOE_CHECK(tune_skew.kind != Skew::Kind::kTrace,
            "tune_skew={} is a trace; levels are tuned under routes that they draw",
            options.tune_skew);
  return {.threads = options.threads == 0 ? usable_threads() : options.threads,
          .isa = std::string(name_of(parse_isa(options.isa))),
          .tune_seconds = options.tune_seconds,
          .tune_cache = resolved_tune_cache(options),
          .tuning = options.tuning,
          .tune_skew = tune_skew.describe(),
          .device = &device,
          .launch = options.launch,
          .progress = options.progress,
          .cancel = options.cancel};
}

/// A level that exists in this build; throws kUnsupported otherwise.
std::unique_ptr<Level> make_level(const LevelInfo& info, Backend backend) {
  const LevelFactory factory = level_factory(info, backend);
  if (factory == nullptr) {
    if (info.on(backend)) {
      fail(ErrorCode::kUnsupported, "this build has no {} backend", name_of(backend));
    }
    fail(ErrorCode::kUnsupported, "level {} has no {} implementation", info.name, name_of(backend));
  }
  return factory();
}

struct Choice {
  const LevelInfo* info = nullptr;
  std::unique_ptr<Level> level;
  std::string why;  // of "auto"
};

std::uint64_t memory_limit(const LayerOptions& options, const Device& device) {
  return options.workspace_limit != 0 ? options.workspace_limit : device.available_memory();
}

/// Why the level cannot run; "" when it can. A level is only asked on a device that works.
std::string unsupported(const Level& level, const LayerOptions& options,
                        const ExecutionOptions& execution) {
  std::string reason = execution.device->unavailable();
  if (reason.empty()) reason = missing_features(level.features(), options.problem);
  return reason.empty() ? level.unsupported(options.problem, execution) : reason;
}

/// "auto" takes the highest level that can run here, fits the memory and suits the problem; where none
/// suits, the highest that runs.
Choice choose(const LayerOptions& options, const ExecutionOptions& execution) {
  if (options.level != "auto") {
    const LevelInfo& info = find_level(options.level);
    Choice choice{&info, make_level(info, options.backend), {}};
    if (const std::string reason = unsupported(*choice.level, options, execution);
        !reason.empty()) {
      throw Error(ErrorCode::kUnsupported, reason);
    }
    return choice;
  }
  const auto& levels = list_levels();
  std::string reasons;
  Choice second;
  for (std::size_t i = levels.size(); i-- > 0;) {
    const LevelInfo& info = levels[i];
    std::string reason = "no implementation in this build";
    if (level_factory(info, options.backend) != nullptr) {
      Choice choice{&info, make_level(info, options.backend), {}};
      reason = unsupported(*choice.level, options, execution);
      if (reason.empty()) {
        const std::uint64_t needed = choice.level->memory(options.problem, execution).total();
        if (needed > memory_limit(options, *execution.device)) {
          reason = "needs " + format_bytes(needed);
        } else {
          const Level::Suitability suitability =
              choice.level->suitability(options.problem, execution);
          if (suitability.suited) {
            choice.why = info.name + ": the highest level that runs here and suits the problem" +
                         (suitability.why.empty() ? "" : " (" + suitability.why + ")") +
                         (reasons.empty() ? "" : "; " + reasons);
            return choice;
          }
          reason = suitability.why;
          if (second.info == nullptr) second = std::move(choice);
        }
      }
    }
    reasons += (reasons.empty() ? "" : "; ") + info.name + ": " + reason;
  }
  if (second.info != nullptr) {
    second.why = second.info->name + ": the highest level that runs here; " + reasons;
    return second;
  }
  fail(ErrorCode::kUnsupported, "no level can run on {}: {}", name_of(options.backend), reasons);
}

/// A level that tunes takes part in what was asked for; others have nothing to be skewed.
void check_tuning(const Level& level, const LevelInfo& info, const Shape& shape,
                  const ExecutionOptions& execution) {
  if (level.tunes() == Level::Tunes::kNothing) return;
  Skew::parse(execution.tune_skew).check(shape);
  if (execution.tune_skew == "uniform" || level.tunes() == Level::Tunes::kUnderAnyRouting) return;
  fail(ErrorCode::kUnsupported, "level {} is tuned under uniform routing only, not under {}",
       info.name, execution.tune_skew);
}

/// What was asked of the launches against what the prepared level does.
void check_launch(const Level& level, const LevelInfo& info, Launch wanted) {
  if (wanted == Launch::kEager && level.launch() == Launch::kGraph) {
    fail(ErrorCode::kUnsupported, "level {} always launches a graph", info.name);
  }
  if (wanted != Launch::kGraph || level.launch() == Launch::kGraph) return;
  if (const std::string reason = level.uncapturable(); !reason.empty()) {
    fail(ErrorCode::kUnsupported, "level {} cannot be launched as a graph: {}", info.name, reason);
  }
}

void check_tensor(const std::string& name, const TensorView& tensor, const TensorView& expected) {
  MOE_CHECK(tensor.dtype == expected.dtype && tensor.rank == expected.rank &&
                tensor.dims == expected.dims,
            "{} is {}, but the problem needs {}", name, tensor.describe(), expected.describe());
  MOE_CHECK(tensor.data != nullptr, "{} {} has no data (null pointer)", name, tensor.describe());
}

/// The caller's memory for the arena.
void check_workspace(const LayerOptions& options, const LevelInfo& info, std::uint64_t needed) {
  MOE_CHECK(options.workspace_bytes >= needed,
            "workspace of {} bytes is too small: level {} needs {} bytes ({})",
            options.workspace_bytes, info.name, needed, to_string(options.problem.shape));
  const auto address = reinterpret_cast<std::uintptr_t>(options.workspace);
  MOE_CHECK(address % kWorkspaceAlignment == 0, "workspace at {:#x} must be aligned to {} bytes",
            address, kWorkspaceAlignment);
}

void check_cancelled(const LayerOptions& options, const LevelInfo& info) {
  if (options.cancel != nullptr && *options.cancel) {
    fail(ErrorCode::kCancelled, "creating level {} was cancelled", info.name);
  }
}

}  // namespace

std::string resolved_tune_cache(const LayerOptions& options) {
  if (!options.tune_cache.empty()) return options.tune_cache;
  if (const char* folder = std::getenv("MOE_CACHE"); folder != nullptr && *folder != '\0')
    return folder;
  if (const char* home = std::getenv("HOME"); home != nullptr && *home != '\0') {
    return std::string(home) + "/.cache/moe";
  }
  return "off";
}

std::string_view name_of(Launch launch) {
  constexpr std::array<std::string_view, 3> kNames = {"auto", "eager", "graph"};
  return kNames[static_cast<std::size_t>(launch)];
}

/// Where this build has no CUDA, choose() refuses that backend before any use of the device.
std::unique_ptr<Device> make_device(const LayerOptions& options) {
  if constexpr (MOE_HAVE_CUDA != 0) {
    if (options.backend == Backend::kCuda) return cuda::make_device(options);
  }
  return cpu::make_device(options);
}

struct Layer::State {
  const LevelInfo* info = nullptr;
  Backend backend = Backend::kCpu;
  std::string choice;
  Problem problem;
  MemoryNeeds memory;
  std::unique_ptr<Device> device;
  std::unique_ptr<Level> level;  // destroyed first: it may hold memory of the device
  double prepare_seconds = 0;
  Arena arena;
  bool caller_synchronises = false;
  std::vector<TraceEvent>* trace = nullptr;  // set while Layer::trace runs, as is
  const std::function<void()>* after_step = nullptr;
};

Layer::Layer(std::unique_ptr<State> state) : state_(std::move(state)) {}
Layer::Layer(Layer&&) noexcept = default;
Layer& Layer::operator=(Layer&&) noexcept = default;
Layer::~Layer() = default;

MemoryNeeds Layer::predict(const LayerOptions& options) {
  const std::unique_ptr<Device> device = make_device(options);
  const ExecutionOptions execution = resolve(options, *device);
  return choose(options, execution).level->memory(options.problem, execution);
}

Layer Layer::create(const LayerOptions& options, const Weights& weights) {
  std::unique_ptr<Device> device = make_device(options);
  const ExecutionOptions execution = resolve(options, *device);
  const Problem& problem = options.problem;
  const std::vector<WeightTensor> tensors = weight_tensors(problem);
  for (const WeightTensor& tensor : tensors) {
    check_tensor(std::string("weights.") + tensor.name, weights.*tensor.view, tensor.expected);
  }

  Choice choice = choose(options, execution);
  for (const WeightTensor& tensor : tensors) {
    device->check_reachable((std::string("weights.") + tensor.name).c_str(), weights.*tensor.view);
  }
  auto state = std::make_unique<State>();
  state->info = choice.info;
  state->backend = options.backend;
  state->choice = choice.why;
  state->problem = problem;
  state->memory = choice.level->memory(problem, execution);
  state->device = std::move(device);
  state->level = std::move(choice.level);
  state->caller_synchronises = options.stream != nullptr;
  const std::uint64_t limit = memory_limit(options, *state->device);
  const bool own_workspace = options.workspace == nullptr;
  if (!own_workspace) {
    check_workspace(options, *state->info, state->memory.workspace);
    const auto bytes = static_cast<std::int64_t>(state->memory.workspace);
    if (bytes > 0) {  // whole tensors of the smallest type: the arena is a multiple of it
      const auto elements = bytes / static_cast<std::int64_t>(size_of(DType::kBF16));
      state->device->check_reachable("workspace", {options.workspace, DType::kBF16, {elements}});
    }
  }
  const std::uint64_t beside = own_workspace ? 0 : state->memory.workspace;
  if (const std::uint64_t needed = state->memory.total() - beside; needed > limit) {
    throw Error(
        ErrorCode::kOutOfMemory,
        fmt::format("level {} needs {}, {} {} ({})", state->info->name, format_bytes(needed),
                    format_bytes(limit), options.workspace_limit != 0 ? "allowed" : "available",
                    to_string(problem.shape)),
        needed);
  }
  check_tuning(*state->level, *state->info, problem.shape, execution);
  check_cancelled(options, *state->info);
  if (options.progress) options.progress("preparing level " + state->info->name);
  const auto start = std::chrono::steady_clock::now();
  state->level->prepare(problem, weights, execution);
  check_cancelled(options, *state->info);
  check_launch(*state->level, *state->info, options.launch);
  state->prepare_seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  void* workspace = own_workspace ? state->device->allocate_workspace(state->memory.workspace)
                                  : options.workspace;
  state->arena = Arena(workspace, state->memory.workspace);
  return Layer(std::move(state));
}

void Layer::forward(const TensorView& x, const TensorView& y) {
  MOE_CHECK(state_->problem.router.scoring != Scoring::kGiven,
            "the problem's routes are given by the caller: forward needs them");
  run(x, y, {});
}

void Layer::forward(const TensorView& x, const TensorView& y, const Routes& routes) {
  MOE_CHECK(state_->problem.router.scoring == Scoring::kGiven,
            "routes are given, but the problem has router {}", to_string(state_->problem.router));
  run(x, y, routes);
}

namespace {

/// Throws unless the routes are where the layer computes and, in host memory, every index is an expert
/// or -1.
void check_routes(const Routes& routes, std::int64_t rows, const Shape& shape,
                  const Device& device) {
  MOE_CHECK(routes.experts != nullptr && routes.weights != nullptr,
            "routes have no {} (null pointer)", routes.experts == nullptr ? "experts" : "weights");
  const auto reachable = [&](const char* name, const void* data) {
    device.check_reachable(name,  // either has elements of 4 bytes
                           TensorView(const_cast<void*>(data), DType::kF32, {rows, shape.top_k}));
  };
  reachable("routes.experts", routes.experts);
  reachable("routes.weights", routes.weights);
  if (!device.on_host()) return;
  for (std::int64_t i = 0; i < rows * shape.top_k; ++i) {
    MOE_CHECK(routes.experts[i] >= -1 && routes.experts[i] < shape.experts,
              "routes.experts[{},{}] is {}, but there are {} experts", i / shape.top_k,
              i % shape.top_k, routes.experts[i], shape.experts);
  }
}

}  // namespace

void Layer::run(const TensorView& x, const TensorView& y, const Routes& routes) {
  const Shape& shape = state_->problem.shape;
  const std::int64_t rows = x.rank == 2 ? x.dim(0) : -1;
  MOE_CHECK(rows <= shape.tokens, "x has {} rows, but the layer was created for tokens={}", rows,
            shape.tokens);
  if (rows == 0) return;
  const TensorView expected(nullptr, state_->problem.dtype, {rows, shape.hidden});
  check_tensor("x", x, expected);
  check_tensor("y", y, expected);
  if (state_->problem.router.scoring == Scoring::kGiven) {
    check_routes(routes, rows, shape, *state_->device);
  }
  const auto* x_begin = x.as<const std::byte>();
  const auto* y_begin = y.as<const std::byte>();
  MOE_CHECK(x_begin + x.bytes() <= y_begin || y_begin + y.bytes() <= x_begin,
            "x and y overlap ({} bytes each)", x.bytes());
  state_->device->check_reachable("x", x);
  state_->device->check_reachable("y", y);
  Context context{.arena = state_->arena,
                  .routes = routes,
                  .trace = state_->trace,
                  .after_step = state_->after_step};
  state_->level->forward(context, x, y);
  if (!state_->caller_synchronises) state_->device->synchronise();
}

std::vector<TraceEvent> Layer::trace(const TensorView& x, const TensorView& y,
                                     const std::function<void()>& after_step,
                                     const Routes& routes) {
  std::vector<TraceEvent> events;
  struct Tracing {
    State& state;
    ~Tracing() {
      state.trace = nullptr;
      state.after_step = nullptr;
    }
  };
  const Tracing tracing{*state_};
  state_->trace = &events;
  state_->after_step = &after_step;
  if (routes.experts == nullptr) {
    forward(x, y);
  } else {
    forward(x, y, routes);
  }
  return events;
}

const LevelInfo& Layer::level() const {
  return *state_->info;
}
const Problem& Layer::problem() const {
  return state_->problem;
}
Backend Layer::backend() const {
  return state_->backend;
}
MemoryNeeds Layer::memory() const {
  return state_->memory;
}
std::uint64_t Layer::workspace_bytes() const {
  return state_->memory.workspace;
}
double Layer::prepare_seconds() const {
  return state_->prepare_seconds;
}
Operands Layer::operands() const {
  return state_->level->operands();
}
std::string Layer::isa() const {
  return state_->level->isa();
}
int Layer::threads() const {
  return state_->level->threads();
}
std::string Layer::choice() const {
  return state_->choice;
}
std::string Layer::plan() const {
  return state_->level->plan();
}
std::vector<TunedChoice> Layer::tuned() const {
  return state_->level->tuned();
}
Launch Layer::launch() const {
  return state_->level->launch();
}
bool Layer::capturable() const {
  return state_->caller_synchronises && state_->level->uncapturable().empty();
}
void Layer::release_workspace_pages() {
  state_->device->release_workspace_pages();
}

}  // namespace moe
