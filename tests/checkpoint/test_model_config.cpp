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

TEST(ModelConfig, TellsTheRouterTheActivationAndTheSharedExpert) {
  const auto block = [](Writer write, const std::string& config, const Block& of) {
    return block_options(problem(write, config, of));
  };
  EXPECT_EQ(
      block(test::write_qwen,
            R"({"model_type":"olmoe","num_experts_per_tok":2,"norm_topk_prob":false})", kBlock),
      "--router softmax,raw");
  EXPECT_EQ(block(test::write_deepseek,
                  R"({"model_type":"deepseek_v3","num_experts_per_tok":2,"n_group":3,)"
                  R"("topk_group":2,"routed_scaling_factor":2.5,"scoring_func":"sigmoid"})",
                  kWithShared),
            "--router sigmoid,selection-bias,groups=3/2,scale=2.5 --shared 5");
  EXPECT_EQ(block(test::write_deepseek,
                  R"({"model_type":"glm4_moe","num_experts_per_tok":2,"norm_topk_prob":false})",
                  kWithShared),
            "--router sigmoid,raw,selection-bias --shared 5");
  EXPECT_EQ(
      block(test::write_gpt_oss,
            R"({"model_type":"gpt_oss","num_experts_per_tok":2,"hidden_act":"silu"})", kBlock),
      "--router softmax,bias --activation swiglu,alpha=1.702,limit=7,up=1 --expert-bias");
  EXPECT_EQ(block(test::write_fused, R"({"model_type":"qwen3_5_moe","num_experts_per_tok":2})",
                  kWithShared),
            "--shared 5,switch");
  EXPECT_EQ(
      block(test::write_mixtral, R"({"model_type":"phimoe","num_experts_per_tok":2})", kBlock),
      "--router sparsemixer");
  EXPECT_EQ(block(test::write_mixtral,
                  R"({"model_type":"mixtral","num_experts_per_tok":2,)"
                  R"("hidden_act":"gelu_pytorch_tanh"})",
                  kBlock),
            "--activation geglu");
}

TEST(ModelConfig, NamesWhatIsNotComputed) {
  constexpr ErrorCode kUnsupported = ErrorCode::kUnsupported;
  const std::string needs = " needs what is not computed: ";
  EXPECT_EQ(complaint(test::write_qwen, R"({"model_type":"qwen3_moe","num_experts_per_tok":2})",
                      kUnsupported),
            "layer 0 (qwen3_moe, layout per-expert)" + needs +
                "norm_topk_prob, which config.json does not tell");
  EXPECT_EQ(complaint(test::write_mixtral,
                      R"({"model_type":"gemma4_text","num_experts_per_tok":2,"hidden_act":"gelu"})",
                      kUnsupported),
            "layer 0 (gemma4_text, layout mixtral)" + needs +
                "its router (softmax of the normalised input with a scale per expert), the "
                "activation 'gelu'");
  EXPECT_EQ(complaint(test::write_deepseek,
                      R"({"model_type":"deepseek_v3","num_experts_per_tok":2,)"
                      R"("scoring_func":"softmax"})",
                      kUnsupported, kWithShared),
            "layer 0 (deepseek_v3, layout per-expert)" + needs + "the scores 'softmax'");
  EXPECT_EQ(complaint(test::write_gpt_oss, R"({"model_type":"mixtral","num_experts_per_tok":2})",
                      kUnsupported),
            "layer 0 (mixtral, layout gpt-oss)" + needs +
                "tensors of layout gpt-oss in a model of that type");
  EXPECT_EQ(complaint(test::write_mixtral,
                      R"({"model_type":"mixtral","num_experts_per_tok":2,"hidden_act":"relu2"})",
                      kUnsupported),
            "layer 0 (mixtral, layout mixtral)" + needs +
                "experts without a gate matrix, which no layout has");
  EXPECT_EQ(complaint(test::write_mixtral, R"({"num_experts_per_tok":2})", kUnsupported),
            "layer 0 (no model_type, layout mixtral)" + needs + "the router of model_type ''");
}

/// config.json alone, in the spellings that models use.
TEST(ModelConfig, IsAPresetByItself) {
  const auto imported = [](const std::string& text) { return problem_of(parse_config("c", text)); };
  const Problem deepseek = imported(
      R"({"model_type":"deepseek_v3","hidden_size":64,"moe_intermediate_size":24,)"
      R"("intermediate_size":99,"n_routed_experts":8,"num_experts_per_tok":3,"n_group":4,)"
      R"("topk_group":2,"n_shared_experts":2,"routed_scaling_factor":2.5,"norm_topk_prob":true})");
  EXPECT_EQ(deepseek.shape, (Shape{64, 64, 24, 8, 3}));
  EXPECT_EQ(block_options(deepseek),
            "--router sigmoid,selection-bias,groups=4/2,scale=2.5 --shared 48");
  const Problem nemotron =
      imported(R"({"model_type":"nemotron_h","hidden_size":64,"moe_intermediate_size":24,)"
               R"("n_routed_experts":8,"num_experts_per_token":2,"mlp_hidden_act":"relu2",)"
               R"("moe_shared_expert_intermediate_size":40,"routed_scaling_factor":2.5})");
  EXPECT_EQ(block_options(nemotron),
            "--router sigmoid,selection-bias,scale=2.5 --activation relu2 --shared 40");
  const Problem gpt_oss = imported(
      R"({"model_type":"gpt_oss","hidden_size":64,"intermediate_size":24,"num_local_experts":8,)"
      R"("top_k_experts":2,"swiglu_limit":6.5})");
  EXPECT_EQ(block_options(gpt_oss),
            "--router softmax,bias --activation swiglu,alpha=1.702,limit=6.5,up=1 --expert-bias");
  const Problem llama =
      imported(R"({"model_type":"llama4","text_config":{"hidden_size":64,"intermediate_size":24,)"
               R"("num_local_experts":8,"moe_top_k":1,"hidden_activation":"silu"}})");
  EXPECT_EQ(block_options(llama), "--router sigmoid,raw,on-input --shared 24");
  const Problem qwen = imported(
      R"({"model_type":"qwen3_next","hidden_size":64,"moe_intermediate_size":24,"num_experts":8,)"
      R"("num_experts_per_tok":2,"shared_expert_intermediate_size":24,"norm_topk_prob":true,)"
      R"("moe_router_activation_func":"softmax"})");
  EXPECT_EQ(block_options(qwen), "--shared 24,switch");
  EXPECT_THROW(static_cast<void>(imported(R"({"model_type":"mixtral","hidden_size":64})")), Error);
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
