#include "cli/presets.h"

#include "core/check.h"
#include "core/text.h"

namespace moe::cli {
namespace {

constexpr const char* kOurs = "softmax over all experts, top-k, renormalised";
constexpr const char* kNone = "none";
constexpr const char* kSwiGLU = "SwiGLU";
constexpr std::int64_t kDecodeTokens = 64;

Shape sizes(std::int64_t tokens, std::int64_t hidden, std::int64_t intermediate,
            std::int64_t experts, std::int64_t top_k) {
  return {.tokens = tokens,
          .hidden = hidden,
          .intermediate = intermediate,
          .experts = experts,
          .top_k = top_k};
}

}  // namespace

const std::vector<Preset>& list_presets() {
  static const std::vector<Preset> presets = {
      {"lab", sizes(256, 1024, 2048, 8, 2), "1", kOurs, kNone, kSwiGLU, ""},
      {"lab-journey", sizes(8192, 4096, 11008, 8, 2), "1", kOurs, kNone, kSwiGLU, ""},
      {"lab-default", sizes(512, 512, 2048, 64, 2), "1", kOurs, kNone, kSwiGLU, ""},
      // Softmax over the chosen logits equals the renormalised softmax over all.
      {"mixtral-8x7b", sizes(kDecodeTokens, 4096, 14336, 8, 2), "32",
       "top-k logits, then softmax: the same weights as ours", kNone, kSwiGLU, ""},
      {"qwen3-30b-a3b", sizes(kDecodeTokens, 2048, 768, 128, 8), "48", kOurs, kNone, kSwiGLU, ""},
      {"qwen3-next-80b", sizes(kDecodeTokens, 2048, 512, 512, 10), "48", kOurs,
       "1 of 512, sigmoid-gated", kSwiGLU, "its shared expert (I=512, sigmoid-gated) is left out"},
      {"deepseek-v2-lite", sizes(kDecodeTokens, 2048, 1408, 64, 6), "27, the first dense",
       "softmax over all experts, top-k, not renormalised, scale 1", "2 of 1408 (2816 together)",
       kSwiGLU, "weights are renormalised here; its 2 shared experts (I=2816) are left out"},
      {"deepseek-v3", sizes(kDecodeTokens, 7168, 2048, 256, 8), "61, the first 3 dense",
       "sigmoid, bias for selection only, 4 of 8 groups, renormalised, scale 2.5", "1 of 2048",
       kSwiGLU,
       "routed by softmax without groups, bias and scale; its shared expert (I=2048) is left out"},
      {"gpt-oss-20b", sizes(kDecodeTokens, 2880, 2880, 32, 4), "24",
       "logits with bias, top-k, then softmax", kNone,
       "SwiGLU clamped at 7, alpha 1.702, (up + 1), biases",
       "no router bias, expert biases, clamp, alpha or (up + 1)"},
      {"gpt-oss-120b", sizes(kDecodeTokens, 2880, 2880, 128, 4), "36",
       "logits with bias, top-k, then softmax", kNone,
       "SwiGLU clamped at 7, alpha 1.702, (up + 1), biases",
       "no router bias, expert biases, clamp, alpha or (up + 1)"},
      {"olmoe-1b-7b", sizes(kDecodeTokens, 2048, 1024, 64, 8), "16",
       "softmax over all experts, top-k, not renormalised", kNone, kSwiGLU,
       "weights are renormalised here"},
      {"llama4-scout", sizes(kDecodeTokens, 5120, 8192, 16, 1), "48",
       "top-1, then sigmoid, which scales the expert's input", "1 of 8192", kSwiGLU,
       "the one weight is 1 here and scales the output; its shared expert (I=8192) is left out"},
      {"glm-4.5-air", sizes(kDecodeTokens, 4096, 1408, 128, 8), "46, the first dense",
       "sigmoid, bias for selection only, renormalised, scale 1", "1 of 1408", kSwiGLU,
       "routed by softmax without bias; its shared expert (I=1408) is left out"},
      {"minimax-m2.5", sizes(kDecodeTokens, 3072, 1536, 256, 8), "62",
       "sigmoid, bias for selection only, renormalised, scale 1", kNone, kSwiGLU,
       "routed by softmax without bias"},
      {"granite-3-1b-a400m", sizes(kDecodeTokens, 1024, 512, 32, 8), "24",
       "top-k logits, then softmax: the same weights as ours", kNone, kSwiGLU, ""},
      {"nemotron-3-nano-30b", sizes(kDecodeTokens, 2688, 1856, 128, 6), "52, hybrid",
       "sigmoid, bias for selection only, renormalised, scale 2.5", "1 of 3712",
       "relu squared, ungated (no gate matrix)",
       "SwiGLU with a gate matrix instead of relu squared (1.5 times the FLOPs); routed by "
       "softmax without bias and scale; its shared expert (I=3712) is left out"},
      {"gemma-4-26b-a4b", sizes(kDecodeTokens, 2816, 704, 128, 8), "30",
       "top-k logits of the RMS-normed input, then softmax, times a scale per expert",
       "dense MLP of 2112 beside the experts", "GeGLU (tanh)",
       "SwiGLU instead of GeGLU; no norm in front of the router, no scale per expert; its dense "
       "MLP (I=2112) is left out"},
  };
  return presets;
}

const Preset& find_preset(std::string_view name) {
  const Preset* beginning = nullptr;
  int beginnings = 0;
  std::vector<std::string> names;
  for (const Preset& preset : list_presets()) {
    if (preset.name == name) return preset;
    names.push_back(preset.name);
    if (!name.empty() && preset.name.starts_with(name)) {
      beginning = &preset;
      ++beginnings;
    }
  }
  if (beginnings == 1) return *beginning;
  fail(ErrorCode::kInvalidArgument, "unknown preset '{}'; did you mean '{}'?", name,
       nearest_match(name, names));
}

}  // namespace moe::cli
