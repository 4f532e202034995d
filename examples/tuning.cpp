// Tunes a layer, with progress on stderr; Ctrl-C ends tuning early and keeps what was found. The
// second creation reads the results and tunes nothing again. Usage: tuning [FOLDER for the results]
#include <moe/moe.h>

#include <atomic>
#include <csignal>
#include <cstdio>
#include <filesystem>
#include <string>
#include <vector>

namespace {

std::atomic<bool> cancelled{false};
static_assert(std::atomic<bool>::is_always_lock_free, "set in a signal handler");

extern "C" void cancel(int) {
  cancelled = true;
}

}  // namespace

int main(int argc, char** argv) try {
  std::signal(SIGINT, cancel);
  moe::LayerOptions options;
  options.level = "compiled";
  options.problem.shape = {
      .tokens = 64, .hidden = 128, .intermediate = 128, .experts = 4, .top_k = 2};
  options.tune_seconds = 10;  // at most
  options.tune_cache =
      argc > 1 ? argv[1] : (std::filesystem::temp_directory_path() / "moe-tuning").string();
  options.cancel = &cancelled;
  int tuned = 0;
  options.progress = [&tuned](const std::string& text) {
    if (text.rfind("tuning", 0) == 0) ++tuned;
    std::fprintf(stderr, "%s\n", text.c_str());
  };

  const moe::Shape& shape = options.problem.shape;
  const moe::Tensor router(moe::DType::kF32, {shape.experts, shape.hidden});
  const moe::Tensor gate_up(moe::DType::kF32, {shape.experts, shape.intermediate, shape.hidden});
  const moe::Tensor down(moe::DType::kF32, {shape.experts, shape.hidden, shape.intermediate});
  moe::Weights weights;  // zeros: tuning measures time, which does not depend on them
  weights.router = router.view();
  weights.gate = gate_up.view();
  weights.up = gate_up.view();
  weights.down = down.view();

  const moe::Layer first = moe::Layer::create(options, weights);
  std::printf("%s\n", first.plan().c_str());
  const int ranges = tuned;
  const moe::Layer second = moe::Layer::create(options, weights);
  std::printf("%d ranges tuned at first, %d the second time\n", ranges, tuned - ranges);
  return second.plan().find("(read)") != std::string::npos ? 0 : 1;
} catch (const moe::Error& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return error.code() == moe::ErrorCode::kCancelled ? 130 : 1;
}
