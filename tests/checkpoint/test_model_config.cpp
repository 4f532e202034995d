// config.json: sizes and router, and what of a layer is not computed.
#include <gtest/gtest.h>

#include "checkpoint/model_config.h"
#include "checkpoint/write_layer.h"
#include "core/check.h"

namespace moe::checkpoint {
namespace {

using test::Block;
using test::FileWriter;
using test::Folder;
using Writer = void (*)(FileWriter&, const Block&, const std::string&);

const Block kBlock{3, 10, 7, 0};
const Block kWithShared{3, 10, 7, 5};

/// The problem of layer 0 that `write` makes, with this config.json.
Problem problem(Writer write, const std::string& config, const Block& block = kBlock) {
  const Folder folder;
  FileWriter file;
  write(file, block, "model.layers.0.");
  folder.write("model.safetensors", file.bytes());
  if (!config.empty()) folder.write("config.json", config);
  Checkpoint model = Checkpoint::open(folder.path());
  const LayerPlan plan = plan_layer(model, 0);
  return problem_of(read_config(model), plan, DType::kBF16);
}

std::string complaint(Writer write, const std::string& config, ErrorCode expected,
                      const Block& block = kBlock) {
  try {
    static_cast<void>(problem(write, config, block));
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), expected) << error.what();
    return error.what();
  }
  return "";
}

TEST(ModelConfig, TellsTheProblem) {
  const Shape shape{.tokens = 1, .hidden = 10, .intermediate = 7, .experts = 3, .top_k = 2};
  const std::string mixtral =
      R"({"model_type":"mixtral","hidden_size":10,"intermediate_size":7,"num_local_experts":3,)"
      R"("num_experts_per_tok":2,"hidden_act":"silu"})";
  EXPECT_EQ(problem(test::write_mixtral, mixtral),
            (Problem{.shape = shape, .dtype = DType::kBF16}));
  // The experts' own size, where the config also has that of dense layers.
  EXPECT_EQ(problem(test::write_qwen,
                    R"({"model_type":"qwen3_moe","moe_intermediate_size":7,"intermediate_size":99,)"
                    R"("num_experts":3,"num_experts_per_tok":2,"norm_topk_prob":true})")
                .shape,
            shape);
  EXPECT_EQ(problem(test::write_qwen, R"({"model_type":"olmoe","intermediate_size":7,)"
                                      R"("num_experts_per_tok":1,"norm_topk_prob":true})")
                .shape.top_k,
            1);
  EXPECT_EQ(
      problem(test::write_granite, R"({"model_type":"granitemoe","num_experts_per_tok":2})").shape,
      shape);
  EXPECT_EQ(problem(test::write_qwen,
                    R"({"model_type":"qwen_that_sees","text_config":{"model_type":"qwen3_moe",)"
                    R"("num_experts_per_token":3,"norm_topk_prob":true}})")
                .shape.top_k,
            3);
}

TEST(ModelConfig, NamesWhatIsNotComputed) {
  constexpr ErrorCode kUnsupported = ErrorCode::kUnsupported;
  const std::string needs = " needs what is not computed yet: ";
  EXPECT_EQ(complaint(test::write_qwen,
                      R"({"model_type":"olmoe","num_experts_per_tok":2,"norm_topk_prob":false})",
                      kUnsupported),
            "layer 0 (olmoe, layout per-expert)" + needs +
                "weights that are not renormalised after top-k (norm_topk_prob is not true)");
  EXPECT_EQ(complaint(test::write_qwen, R"({"model_type":"qwen3_moe","num_experts_per_tok":2})",
                      kUnsupported),
            "layer 0 (qwen3_moe, layout per-expert)" + needs +
                "weights that are not renormalised after top-k (norm_topk_prob is not true)");
  EXPECT_EQ(
      complaint(test::write_deepseek, R"({"model_type":"deepseek_v3","num_experts_per_tok":2})",
                kUnsupported, kWithShared),
      "layer 0 (deepseek_v3, layout per-expert)" + needs +
          "its router (sigmoid with a selection bias, groups and a scale), a selection bias, "
          "shared experts");
  EXPECT_EQ(complaint(test::write_gpt_oss, R"({"model_type":"gpt_oss","num_experts_per_tok":2})",
                      kUnsupported),
            "layer 0 (gpt_oss, layout gpt-oss)" + needs +
                "a bias of the router, biases of the experts, the clamped SwiGLU of gpt-oss");
  EXPECT_EQ(complaint(test::write_fused, R"({"model_type":"qwen3_5_moe","num_experts_per_tok":2})",
                      kUnsupported, kWithShared),
            "layer 0 (qwen3_5_moe, layout fused)" + needs +
                "shared experts, a gate of the shared expert");
  EXPECT_EQ(complaint(test::write_mixtral,
                      R"({"model_type":"mixtral","num_experts_per_tok":2,"hidden_act":"gelu"})",
                      kUnsupported),
            "layer 0 (mixtral, layout mixtral)" + needs + "the activation 'gelu'");
  EXPECT_EQ(complaint(test::write_mixtral, R"({"num_experts_per_tok":2})", kUnsupported),
            "layer 0 (no model_type, layout mixtral)" + needs + "the router of model_type ''");
}

TEST(ModelConfig, DisagreementAndGapsAreRefused) {
  constexpr ErrorCode kIo = ErrorCode::kIo;
  EXPECT_EQ(complaint(test::write_mixtral,
                      R"({"model_type":"mixtral","num_experts_per_tok":2,"hidden_size":11})", kIo),
            "config.json has H=11, but the tensors of layer 0 have 10");
  EXPECT_EQ(
      complaint(test::write_mixtral,
                R"({"model_type":"mixtral","num_experts_per_tok":2,"intermediate_size":8})", kIo),
      "config.json has I=8, but the tensors of layer 0 have 7");
  EXPECT_EQ(
      complaint(test::write_mixtral,
                R"({"model_type":"mixtral","num_experts_per_tok":2,"num_local_experts":8})", kIo),
      "config.json has E=8, but the tensors of layer 0 have 3");
  EXPECT_EQ(complaint(test::write_mixtral, R"({"model_type":"mixtral"})", kIo),
            "config.json has no num_experts_per_tok, the number of experts per token");
  EXPECT_EQ(complaint(test::write_mixtral, R"({"num_experts_per_tok":"2"})", kIo),
            "config.json: num_experts_per_tok is \"2\", not a size");
  EXPECT_EQ(complaint(test::write_mixtral, R"({"model_type":"mixtral","num_experts_per_tok":4})",
                      ErrorCode::kInvalidArgument),
            "top_k=4 exceeds experts=3 (T=1 H=10 I=7 E=3 K=4)");
  EXPECT_EQ(complaint(test::write_mixtral, "{", kIo),
            "config.json is not JSON: the error is at byte 1 of 1");
  EXPECT_NE(
      complaint(test::write_mixtral, "", kIo).find(" has no config.json, which tells the router"),
      std::string::npos);
}

}  // namespace
}  // namespace moe::checkpoint
