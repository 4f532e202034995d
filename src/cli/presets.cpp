#include "cli/presets.h"

#include "core/check.h"
#include "core/text.h"

namespace moe::cli {
namespace {

constexpr std::int64_t kDecodeTokens = 64;

/// What models have in common beyond sizes.
constexpr const char* kPlain = "";  // softmax, top-k, renormalised (in either order); SwiGLU
constexpr const char* kRaw = "--router softmax,raw";
constexpr const char* kGptOss =
    "--router softmax,bias --activation swiglu,alpha=1.702,limit=7,up=1 --expert-bias";

Preset preset(std::string name, std::int64_t tokens, std::int64_t hidden, std::int64_t intermediate,
              std::int64_t experts, std::int64_t top_k, const std::string& block,
              std::string layers, std::string limits = "") {
  Problem problem{.shape = {.tokens = tokens,
                            .hidden = hidden,
                            .intermediate = intermediate,
                            .experts = experts,
                            .top_k = top_k}};
  set_block_options(problem, block);
  return {std::move(name), problem, std::move(layers), std::move(limits)};
}

/// Of a model, at a decoding batch.
Preset model(std::string name, std::int64_t hidden, std::int64_t intermediate, std::int64_t experts,
             std::int64_t top_k, const std::string& block, std::string layers,
             std::string limits = "") {
  return preset(std::move(name), kDecodeTokens, hidden, intermediate, experts, top_k, block,
                std::move(layers), std::move(limits));
}

/// DeepSeek-V3's router: sigmoid scores, a bias for choosing, renormalised, then `rest`.
std::string sigmoid(const std::string& rest) {
  return "--router sigmoid,selection-bias" + rest;
}

}  // namespace

const std::vector<Preset>& list_presets() {
  // Sizes from the models' config.json files; where only other engines' copies of one were seen, the
  // last column says so.
  static const std::vector<Preset> presets = {
      preset("lab", 256, 1024, 2048, 8, 2, kPlain, "1"),
      preset("lab-journey", 8192, 4096, 11008, 8, 2, kPlain, "1"),
      preset("lab-default", 512, 512, 2048, 64, 2, kPlain, "1"),
      preset("lab-tiny", 512, 256, 512, 4, 2, kPlain, "1"),
      preset("lab-small", 512, 512, 2048, 4, 2, kPlain, "1"),
      preset("lab-medium", 512, 1024, 2816, 8, 2, kPlain, "1"),
      preset("lab-large", 512, 2048, 5504, 16, 4, kPlain, "1"),
      model("mixtral-8x7b", 4096, 14336, 8, 2, kPlain, "32"),
      model("mixtral-8x22b", 6144, 16384, 8, 2, kPlain, "56"),
      model("qwen3-30b-a3b", 2048, 768, 128, 8, kPlain, "48"),
      model("qwen3-235b-a22b", 4096, 1536, 128, 8, kPlain, "94"),
      model("qwen3-coder-480b", 6144, 2560, 160, 8, kPlain, "62"),
      model("qwen3-next-80b", 2048, 512, 512, 10, "--shared 512,switch", "48",
            "sizes from another engine's copy of its configuration"),
      model("qwen3.5-35b-a3b", 2048, 512, 256, 8, "--shared 512,switch", "40"),
      model("qwen3.5-122b-a10b", 3072, 1024, 256, 8, "--shared 1024,switch", "48"),
      model("qwen3.5-397b-a17b", 4096, 1024, 512, 10, "--shared 1024,switch", "60"),
      model("deepseek-v2-lite", 2048, 1408, 64, 6, std::string(kRaw) + " --shared 2816",
            "27, the first dense"),
      model("deepseek-v2", 5120, 1536, 160, 6,
            "--router softmax,raw,groups=8/3,scale=16 --shared 3072", "60, the first dense"),
      model("deepseek-v3", 7168, 2048, 256, 8, sigmoid(",groups=8/4,scale=2.5 --shared 2048"),
            "61, the first 3 dense"),
      model("deepseek-v4-flash", 4096, 2048, 256, 6,
            "--router sqrtsoftplus,selection-bias,scale=1.5 --activation swiglu,limit=10 --shared "
            "2048",
            "43", "its first 3 layers choose experts by the token's id"),
      model("deepseek-v4-pro", 7168, 3072, 384, 6,
            "--router sqrtsoftplus,selection-bias,scale=2.5 --activation swiglu,limit=10 --shared "
            "3072",
            "61", "its first 3 layers choose experts by the token's id"),
      model("kimi-k2", 7168, 2048, 384, 8, sigmoid(",scale=2.827 --shared 2048"),
            "61, the first dense"),
      model("kimi-k3", 3584, 3072, 896, 16, sigmoid(" --shared 6144"), "93, the first dense",
            "the experts' latent space only: projections from and to H=7168 are left out, router "
            "and shared expert read the latent; SwiGLU instead of its own activation"),
      model("gpt-oss-20b", 2880, 2880, 32, 4, kGptOss, "24"),
      model("gpt-oss-120b", 2880, 2880, 128, 4, kGptOss, "36"),
      model("olmoe-1b-7b", 2048, 1024, 64, 8, kRaw, "16"),
      model("llama4-scout", 5120, 8192, 16, 1, "--router sigmoid,raw,on-input --shared 8192", "48"),
      model("llama4-maverick", 5120, 8192, 128, 1, "--router sigmoid,raw,on-input --shared 8192",
            "48, every second MoE"),
      model("glm-4.5-air", 4096, 1408, 128, 8, sigmoid(" --shared 1408"), "46, the first dense",
            "sizes from models derived from it"),
      model("glm-4.7", 5120, 1536, 160, 8, sigmoid(",scale=2.5 --shared 1536"),
            "92, the first 3 dense"),
      model("glm-5", 6144, 2048, 256, 8, sigmoid(",scale=2.5 --shared 2048"),
            "78, the first 3 dense"),
      model("minimax-m2.5", 3072, 1536, 256, 8, sigmoid(""), "62"),
      model("minimax-m3", 6144, 3072, 128, 4,
            sigmoid(",scale=2 --activation swiglu,alpha=1.702,limit=7,up=1 --shared 3072"),
            "60, the first 3 dense"),
      model("granite-3-1b-a400m", 1024, 512, 32, 8, kPlain, "24"),
      model("granite-3-3b-a800m", 1536, 512, 40, 8, kPlain, "32"),
      model("phi-3.5-moe", 4096, 6400, 16, 2, "--router sparsemixer", "32",
            "sizes from another engine's copy of its configuration"),
      model("nemotron-3-nano-30b", 2688, 1856, 128, 6,
            sigmoid(",scale=2.5 --activation relu2 --shared 3712"), "52, hybrid"),
      model("nemotron-3-super-120b", 1024, 2688, 512, 22,
            sigmoid(",scale=5 --activation relu2 --shared 5376"), "88, hybrid",
            "the experts' latent space only: projections from and to H=4096 are left out, router "
            "and shared expert read the latent"),
      model("gemma-4-26b-a4b", 2816, 704, 128, 8, "--activation geglu --shared 2112", "30",
            "no norm in front of the router, no scale per expert; its dense MLP (I=2112) is the "
            "shared expert here"),
      model("mimo-v2-flash", 4096, 2048, 256, 8, sigmoid(""), "48, the first dense"),
      model("step-3.7-flash", 4096, 1280, 288, 8, sigmoid(",scale=3 --shared 1280"),
            "45, the first 3 dense", "some of its layers clamp SwiGLU"),
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
