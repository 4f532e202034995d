// Layers in the layout of every family: each value arrives where it belongs, and what is wrong,
// missing or ambiguous is told.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <set>

#include "checkpoint/expect_layer.h"
#include "checkpoint/load.h"
#include "checkpoint/write_layer.h"
#include "core/check.h"

namespace moe::checkpoint {
namespace {

using test::Block;
using test::Bytes;
using test::expect_experts;
using test::FileWriter;
using test::floats;

const std::string kLayer = "model.layers.3.";

Checkpoint in_memory(const Bytes& bytes) {
  std::vector<SafetensorsFile> files;
  files.emplace_back("f", std::as_bytes(std::span(bytes.data(), bytes.size())));
  return Checkpoint::of("m", std::move(files));
}

void expect_shared(const LayerContents& contents, const Block& b) {
  EXPECT_EQ(floats(contents.weights.shared_gate), b.shared_gate);
  EXPECT_EQ(floats(contents.weights.shared_up), b.shared_up);
  EXPECT_EQ(floats(contents.weights.shared_down), b.shared_down);
}

/// Plans and loads; every size is another, and none is a multiple of a block.
struct Loaded {
  LayerPlan plan;
  LayerContents contents;
};

Loaded load(const FileWriter& file, Layout layout, const Block& b, DType dtype = DType::kBF16) {
  const Bytes bytes = file.bytes();
  Checkpoint model = in_memory(bytes);
  Loaded loaded;
  loaded.plan = plan_layer(model, 3);
  EXPECT_EQ(name_of(loaded.plan.layout), name_of(layout));
  EXPECT_EQ(loaded.plan.experts, b.e);
  EXPECT_EQ(loaded.plan.hidden, b.h);
  EXPECT_EQ(loaded.plan.intermediate, b.i);
  EXPECT_EQ(loaded.plan.with(Use::kConsumed).size(), file.names().size());
  EXPECT_EQ(loaded.plan.with(Use::kMissing).size(), 0U);
  loaded.contents = load_layer(loaded.plan, dtype);
  loaded.plan = plan_layer(model, 3);
  return loaded;
}

TEST(Layouts, Mixtral) {
  const Block b{3, 10, 7, 0};
  FileWriter file;
  test::write_mixtral(file, b, kLayer);
  for (const DType dtype : {DType::kBF16, DType::kF32}) {
    const Loaded loaded = load(file, Layout::kMixtral, b, dtype);
    expect_experts(loaded.contents, b);
    EXPECT_TRUE(loaded.contents.exact);
    EXPECT_EQ(loaded.contents.weights.selection_bias.view().rank, 0);
    EXPECT_EQ(loaded.contents.weights.shared_gate.view().rank, 0);
    EXPECT_EQ(loaded.contents.weights.gate.view().dtype, dtype);
  }
}

TEST(Layouts, QwenWithEveryPrefix) {
  const Block b{3, 10, 7, 0};
  for (const char* prefix : {"model.", "model.language_model.", "language_model.model.", ""}) {
    FileWriter file;
    test::write_qwen(file, b, std::string(prefix) + "layers.3.");
    const Loaded loaded = load(file, Layout::kPerExpert, b);
    EXPECT_EQ(loaded.plan.prefix, std::string(prefix) + "layers.3.");
    expect_experts(loaded.contents, b);
  }
}

TEST(Layouts, ManyExpertsSideBySide) {
  // Enough that several threads load an expert each; the first that is wrong is the one that is told.
  const Block b{40, 10, 7, 0};
  FileWriter file;
  test::write_qwen(file, b, kLayer);
  expect_experts(load(file, Layout::kPerExpert, b).contents, b);
  Block wrong = b;
  for (const std::size_t expert : {39U, 17U, 23U}) {
    wrong.up[expert * 70 + 5] = std::numeric_limits<float>::infinity();
  }
  FileWriter bad;
  test::write_qwen(bad, wrong, kLayer);
  const Bytes bytes = bad.bytes();
  Checkpoint model = in_memory(bytes);
  try {
    static_cast<void>(load_layer(plan_layer(model, 3), DType::kF32));
    FAIL() << "loaded";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("experts.17.up_proj"), std::string::npos)
        << error.what();
  }
}

TEST(Layouts, DeepSeekHasSelectionBiasAndSharedExperts) {
  const Block b{3, 10, 7, 5};
  FileWriter file;
  test::write_deepseek(file, b, kLayer);
  const Loaded loaded = load(file, Layout::kPerExpert, b);
  EXPECT_EQ(loaded.plan.shared, 5);
  expect_experts(loaded.contents, b);
  expect_shared(loaded.contents, b);
  EXPECT_EQ(floats(loaded.contents.weights.selection_bias), b.selection_bias);
}

TEST(Layouts, FusedWithGateRowsFirst) {
  const Block b{3, 10, 7, 5};
  FileWriter file;
  test::write_fused(file, b, kLayer);
  const Loaded loaded = load(file, Layout::kFused, b);
  expect_experts(loaded.contents, b);
  expect_shared(loaded.contents, b);
  EXPECT_EQ(floats(loaded.contents.weights.shared_switch), b.shared_switch);
}

TEST(Layouts, Llama4IsTransposed) {
  const Block b{3, 70, 37, 5};  // more rows than one block of the transposition
  FileWriter file;
  test::write_llama4(file, b, kLayer);
  const Loaded loaded = load(file, Layout::kLlama4, b);
  expect_experts(loaded.contents, b);
  expect_shared(loaded.contents, b);
}

void expect_gpt_oss_biases(const LayerContents& contents, const Block& b) {
  EXPECT_EQ(floats(contents.weights.router_bias), b.router_bias);
  EXPECT_EQ(floats(contents.weights.gate_bias), b.gate_bias);
  EXPECT_EQ(floats(contents.weights.up_bias), b.up_bias);
  EXPECT_EQ(floats(contents.weights.down_bias), b.down_bias);
}

TEST(Layouts, GptOssInBf16IsTransposedAndInTurn) {
  for (const std::int64_t i : {7, 10}) {  // 10 = H: down alone does not show its orientation
    const Block b{3, 10, i, 0};
    FileWriter file;
    test::write_gpt_oss(file, b, kLayer);
    const Loaded loaded = load(file, Layout::kGptOss, b);
    expect_experts(loaded.contents, b);
    expect_gpt_oss_biases(loaded.contents, b);
  }
}

TEST(Layouts, GptOssInMxfp4) {
  Block b{3, 64, 96, 0};
  FileWriter file;
  test::write_gpt_oss_mxfp4(file, b, kLayer);
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    const Loaded loaded = load(file, Layout::kGptOssMxfp4, b, dtype);
    expect_experts(loaded.contents, b);
    expect_gpt_oss_biases(loaded.contents, b);
    EXPECT_TRUE(loaded.contents.exact);  // 2 significant bits and a power of two
  }
}

TEST(Layouts, Granite) {
  const Block b{3, 10, 7, 5};
  FileWriter file;
  test::write_granite(file, b, kLayer);
  const Loaded loaded = load(file, Layout::kGranite, b);
  expect_experts(loaded.contents, b);
  expect_shared(loaded.contents, b);
}

TEST(Layouts, Fp8WithBlockScales) {
  Block b{2, 150, 200, 130};
  FileWriter file;
  test::write_deepseek_fp8(file, b, kLayer);
  const Loaded loaded = load(file, Layout::kPerExpert, b, DType::kF32);
  expect_experts(loaded.contents, b);
  expect_shared(loaded.contents, b);
  EXPECT_TRUE(loaded.contents.exact);
  const Loaded rounded = load(file, Layout::kPerExpert, b, DType::kBF16);
  EXPECT_FALSE(rounded.contents.exact);
  std::vector<float> gate;
  for (const float value : b.gate) gate.push_back(to_float(to_bfloat16(value)));
  EXPECT_EQ(floats(rounded.contents.weights.gate), gate);
}

TEST(Layouts, StoredAsF32AndF16) {
  const Block b{2, 4, 3, 0};
  FileWriter file;
  Bytes halves;
  for (int i = 0; i < 8; ++i) test::append(halves, static_cast<std::uint16_t>(0x3c00 + i));
  file.add(kLayer + "mlp.gate.weight", "F16", {2, 4}, halves);
  for (int e = 0; e < 2; ++e) {
    const std::string expert = kLayer + "mlp.experts." + std::to_string(e) + ".";
    file.add_f32(expert + "gate_proj.weight", {3, 4}, test::slice(b.gate, e, 12));
    file.add_f32(expert + "up_proj.weight", {3, 4}, std::vector<float>(12, 1.0F + 0x1p-20F));
    file.add_f32(expert + "down_proj.weight", {4, 3}, test::slice(b.down, e, 12));
  }
  const Loaded loaded = load(file, Layout::kPerExpert, b, DType::kF32);
  EXPECT_EQ(loaded.contents.weights.router.as<float>()[7], 1.0F + 7.0F / 1024);
  EXPECT_EQ(loaded.contents.weights.up.as<float>()[23], 1.0F + 0x1p-20F);
  EXPECT_TRUE(loaded.contents.exact);
  EXPECT_FALSE(load(file, Layout::kPerExpert, b, DType::kBF16).contents.exact);
}

// --- what is refused ----------------------------------------------------------------------------

/// What planning and loading layer 3 says; "" when nothing.
std::string complaint(const FileWriter& file, DType dtype = DType::kF32,
                      ErrorCode expected = ErrorCode::kIo) {
  const Bytes bytes = file.bytes();
  Checkpoint model = in_memory(bytes);
  try {
    static_cast<void>(load_layer(plan_layer(model, 3), dtype));
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), expected) << error.what();
    return error.what();
  }
  return "";
}

/// A Qwen layer of sizes E=2 H=4 I=3 in which `name` is something else; null bytes: left out.
FileWriter qwen_with(const std::string& name, const std::string& type,
                     const std::vector<std::int64_t>& shape, const Bytes& bytes) {
  FileWriter file;
  const auto add = [&](const std::string& tensor, const std::vector<std::int64_t>& sizes) {
    if (tensor == name) {
      if (!type.empty()) file.add(kLayer + tensor, type, shape, bytes);
    } else {
      file.add_f32(kLayer + tensor, sizes, test::numbers(sizes[0] * sizes[1], 1));
    }
  };
  add("mlp.gate.weight", {2, 4});
  for (const char* expert : {"mlp.experts.0.", "mlp.experts.1."}) {
    add(std::string(expert) + "gate_proj.weight", {3, 4});
    add(std::string(expert) + "up_proj.weight", {3, 4});
    add(std::string(expert) + "down_proj.weight", {4, 3});
  }
  return file;
}

TEST(Faults, MissingTensors) {
  EXPECT_EQ(complaint(qwen_with("", "", {}, "")), "");
  EXPECT_EQ(complaint(qwen_with("mlp.experts.1.up_proj.weight", "", {}, "")),
            "layer 3 of layout per-expert lacks 'model.layers.3.mlp.experts.1.up_proj.weight'");
  EXPECT_EQ(complaint(qwen_with("mlp.gate.weight", "", {}, "")),
            "layer 3 of layout per-expert lacks 'model.layers.3.mlp.gate.weight'");
  FileWriter half_shared = qwen_with("", "", {}, "");
  half_shared.add_f32(kLayer + "mlp.shared_experts.up_proj.weight", {2, 4}, test::numbers(8, 1));
  EXPECT_EQ(complaint(half_shared),
            "layer 3 of layout per-expert lacks "
            "'model.layers.3.mlp.shared_experts.down_proj.weight' and 1 more tensors");
  FileWriter no_scales =
      qwen_with("mlp.experts.0.gate_proj.weight", "F8_E4M3", {3, 4}, Bytes(12, '8'));
  EXPECT_EQ(complaint(no_scales),
            "layer 3 of layout per-expert lacks "
            "'model.layers.3.mlp.experts.0.gate_proj.weight_scale_inv'");
  FileWriter no_weight = qwen_with("mlp.experts.0.gate_proj.weight", "", {}, "");
  no_weight.add_f32(kLayer + "mlp.experts.0.gate_proj.weight_scale_inv", {1, 1}, {1});
  EXPECT_EQ(complaint(no_weight),
            "layer 3 of layout per-expert lacks 'model.layers.3.mlp.experts.0.gate_proj.weight'");
}

TEST(Faults, AMissingLastExpertIsSeenByTheRouter) {
  const Block b{2, 4, 3, 0};
  FileWriter file;
  file.add_f32(kLayer + "mlp.gate.weight", {3, 4}, test::numbers(12, 1));
  test::write_experts(file, b, kLayer + "mlp.experts.",
                      {"gate_proj.weight", "up_proj.weight", "down_proj.weight"});
  EXPECT_EQ(
      complaint(file),
      "layer 3 of layout per-expert lacks 'model.layers.3.mlp.experts.2.down_proj.weight' and "
      "2 more tensors");
  FileWriter fewer;
  fewer.add_f32(kLayer + "mlp.gate.weight", {1, 4}, test::numbers(4, 1));
  test::write_experts(fewer, b, kLayer + "mlp.experts.",
                      {"gate_proj.weight", "up_proj.weight", "down_proj.weight"});
  EXPECT_EQ(
      complaint(fewer),
      "m: tensor 'model.layers.3.mlp.experts.1.down_proj.weight' is of expert 1, but the router "
      "has 1 experts");
}

TEST(Faults, WrongTypes) {
  EXPECT_EQ(complaint(qwen_with("mlp.experts.1.up_proj.weight", "I32", {3, 4}, Bytes(48, '\0'))),
            "f: tensor 'model.layers.3.mlp.experts.1.up_proj.weight' is I32 [3,4], but the up of "
            "layout per-expert can be F32, BF16, F16 or F8_E4M3 with a scale per 128x128 block");
  EXPECT_EQ(complaint(qwen_with("mlp.gate.weight", "F8_E4M3", {2, 4}, Bytes(8, '\0'))),
            "f: tensor 'model.layers.3.mlp.gate.weight' is F8_E4M3 [2,4], but the router of layout "
            "per-expert can be F32, BF16 or F16");
  FileWriter scales =
      qwen_with("mlp.experts.0.gate_proj.weight", "F8_E4M3", {3, 4}, Bytes(12, '8'));
  scales.add(kLayer + "mlp.experts.0.gate_proj.weight_scale_inv", "U8", {3, 1}, Bytes(3, '\1'));
  EXPECT_EQ(complaint(scales),
            "f: tensor 'model.layers.3.mlp.experts.0.gate_proj.weight_scale_inv' is U8 [3,1], but "
            "one scale per 128x128 block of F8_E4M3 [3,4] is F32 or BF16 [1,1]");
  FileWriter unscaled = qwen_with("", "", {}, "");
  unscaled.add_f32(kLayer + "mlp.experts.0.gate_proj.weight_scale_inv", {1, 1}, {1});
  EXPECT_EQ(complaint(unscaled),
            "f: tensor 'model.layers.3.mlp.experts.0.gate_proj.weight_scale_inv' scales "
            "'model.layers.3.mlp.experts.0.gate_proj.weight', which is F32 [3,4] and not F8_E4M3");
}

TEST(Faults, WrongShapes) {
  EXPECT_EQ(complaint(qwen_with("mlp.experts.1.up_proj.weight", "F32", {4, 3}, Bytes(48, '\0'))),
            "f: tensor 'model.layers.3.mlp.experts.1.up_proj.weight' is F32 [4,3], but the up of "
            "layout per-expert is [I,H] with I=3 as in "
            "'model.layers.3.mlp.experts.0.down_proj.weight', H=4 as in "
            "'model.layers.3.mlp.gate.weight'");
  EXPECT_EQ(complaint(qwen_with("mlp.gate.weight", "F32", {8}, Bytes(32, '\0'))),
            "f: tensor 'model.layers.3.mlp.gate.weight' is F32 [8], but the router of layout "
            "per-expert is [E,H]");
  EXPECT_EQ(complaint(qwen_with("mlp.gate.weight", "F32", {0, 4}, "")),
            "f: tensor 'model.layers.3.mlp.gate.weight' is F32 [0,4], but the router of layout "
            "per-expert is [E,H]");
  // Qwen3.5 as [E,H,2I]: down tells which dimension is H.
  FileWriter transposed;
  transposed.add_f32(kLayer + "mlp.gate.weight", {1, 4}, test::numbers(4, 1));
  transposed.add_f32(kLayer + "mlp.experts.gate_up_proj", {1, 4, 6}, test::numbers(24, 1));
  transposed.add_f32(kLayer + "mlp.experts.down_proj", {1, 3, 4}, test::numbers(12, 1));
  EXPECT_EQ(
      complaint(transposed),
      "f: tensor 'model.layers.3.mlp.experts.down_proj' is F32 [1,3,4], but the down of layout "
      "fused is [E,H,I] with E=1 as in 'model.layers.3.mlp.gate.weight', H=4 as in "
      "'model.layers.3.mlp.gate.weight'");
  FileWriter odd;
  odd.add_f32(kLayer + "mlp.gate.weight", {1, 4}, test::numbers(4, 1));
  odd.add_f32(kLayer + "mlp.experts.gate_up_proj", {1, 5, 4}, test::numbers(20, 1));
  EXPECT_EQ(
      complaint(odd),
      "f: tensor 'model.layers.3.mlp.experts.gate_up_proj' is F32 [1,5,4], but the gate and up "
      "of layout fused is [E,2I,H] with E=1 as in 'model.layers.3.mlp.gate.weight', H=4 as in "
      "'model.layers.3.mlp.gate.weight'");
}

TEST(Faults, Ambiguity) {
  constexpr ErrorCode kArgument = ErrorCode::kInvalidArgument;
  const Block b{2, 32, 32, 2};
  FileWriter two;
  test::write_qwen(two, b, kLayer);
  test::write_mixtral(two, b, kLayer);
  EXPECT_EQ(
      complaint(two, DType::kF32, kArgument),
      "m: layer 3 can be of layout mixtral (it has "
      "'model.layers.3.block_sparse_moe.experts.0.w1.weight') and of layout per-expert (it has "
      "'model.layers.3.mlp.experts.0.down_proj.weight')");
  FileWriter order;  // neither router says whether gate and up rows alternate
  order.add_f32(kLayer + "mlp.experts.down_proj", {1, 2, 2}, test::numbers(4, 1));
  EXPECT_EQ(
      complaint(order, DType::kF32, kArgument),
      "m: layer 3 can be of layout fused (it has 'model.layers.3.mlp.experts.down_proj') and of "
      "layout gpt-oss (it has 'model.layers.3.mlp.experts.down_proj')");
  Block quantised = b;
  FileWriter both;
  test::write_gpt_oss_mxfp4(both, quantised, kLayer);
  both.add_bf16(kLayer + "mlp.experts.down_proj", {2, 32, 32}, test::transposed_down(b));
  EXPECT_EQ(
      complaint(both, DType::kF32, kArgument),
      "m: layer 3 can be of layout gpt-oss (it has 'model.layers.3.mlp.experts.down_proj') and "
      "of layout gpt-oss-mxfp4 (it has 'model.layers.3.mlp.experts.down_proj_blocks')");
  FileWriter prefixes;
  test::write_qwen(prefixes, b, kLayer);
  test::write_qwen(prefixes, b, "layers.3.");
  EXPECT_EQ(complaint(prefixes, DType::kF32, kArgument),
            "m: layer 3 has experts in 'model.layers.3.mlp.experts.0.down_proj.weight' and in "
            "'layers.3.mlp.experts.0.down_proj.weight'");
  FileWriter shared;
  test::write_qwen(shared, b, kLayer);
  test::write_shared(shared, b, kLayer + "mlp.shared_experts.");
  test::write_shared(shared, b, kLayer + "mlp.shared_expert.");
  EXPECT_EQ(
      complaint(shared, DType::kF32, kArgument),
      "m: tensors 'model.layers.3.mlp.shared_expert.down_proj.weight' and "
      "'model.layers.3.mlp.shared_experts.down_proj.weight' are both the shared down of layer "
      "3");
}

TEST(Faults, UnknownTensorsOfTheBlockAreNotPassedOver) {
  FileWriter file = qwen_with("", "", {}, "");
  file.add_f32(kLayer + "self_attn.q_proj.weight", {1, 1}, {1});
  EXPECT_EQ(complaint(file), "");
  file.add_f32(kLayer + "mlp.experts.0.gate_proj.bias", {3}, {1, 2, 3});
  EXPECT_EQ(
      complaint(file, DType::kF32, ErrorCode::kUnsupported),
      "layer 3 has the tensor 'model.layers.3.mlp.experts.0.gate_proj.bias' in its MoE block, "
      "which layout per-expert does not know: it would be computed without it");
}

TEST(Faults, OtherSpellingsOfANumberAreOtherNames) {
  FileWriter file = qwen_with("", "", {}, "");
  file.add_f32("model.layers.03.mlp.more", {1}, {1});
  file.add_f32("model.layers.-0.mlp.more", {1}, {1});
  file.add_f32(kLayer + "mlp.experts.01.gate_proj.weight", {3, 4}, test::numbers(12, 1));
  EXPECT_EQ(complaint(file, DType::kF32, ErrorCode::kUnsupported),
            "layer 3 has the tensor 'model.layers.3.mlp.experts.01.gate_proj.weight' in its MoE "
            "block, which layout per-expert does not know: it would be computed without it");
}

TEST(Faults, LayersWithoutExperts) {
  constexpr ErrorCode kArgument = ErrorCode::kInvalidArgument;
  FileWriter dense;
  dense.add_f32(kLayer + "mlp.gate_proj.weight", {1, 1}, {1});
  EXPECT_EQ(complaint(dense, DType::kF32, kArgument),
            "m: layer 3 has no MoE block of a known layout among its 1 tensors, such as "
            "'model.layers.3.mlp.gate_proj.weight'");
  FileWriter others;
  test::write_qwen(others, {2, 4, 3, 0}, "model.layers.0.");
  test::write_qwen(others, {2, 4, 3, 0}, "model.layers.1.");
  EXPECT_EQ(complaint(others, DType::kF32, kArgument), "m has no layer 3: its layers are 0 to 1");
  FileWriter none;
  none.add_f32("lm_head.weight", {1, 1}, {1});
  EXPECT_EQ(complaint(none, DType::kF32, kArgument),
            "m has no layer 3: none of its 1 tensors is named *layers.N.*");
}

TEST(Faults, ValuesThatAreNotFinite) {
  const float infinity = std::numeric_limits<float>::infinity();
  std::vector<float> values(12, 1.0F);
  values[6] = std::numeric_limits<float>::quiet_NaN();
  values[9] = infinity;
  const std::string name = "mlp.experts.1.up_proj.weight";
  const std::string said =
      "f: tensor 'model.layers.3." + name + "' holds a value at [1,2] that is not finite as ";
  EXPECT_EQ(complaint(qwen_with(name, "F32", {3, 4}, test::f32_bytes(values))), said + "fp32");
  values[6] = std::numeric_limits<float>::max();
  values[9] = 0;
  const FileWriter large = qwen_with(name, "F32", {3, 4}, test::f32_bytes(values));
  EXPECT_EQ(complaint(large), "");
  EXPECT_EQ(complaint(large, DType::kBF16), said + "bf16");

  // Transposed: the place is that in the file.
  const Block b{2, 4, 3, 2};
  FileWriter llama;
  Block broken = b;
  broken.up[1 * 12 + 2 * 4 + 3] = -infinity;  // expert 1, row 2, column 3
  test::write_llama4(llama, broken, kLayer);
  EXPECT_EQ(complaint(llama),
            "f: tensor 'model.layers.3.feed_forward.experts.gate_up_proj' holds a value at [1,3,5] "
            "that is not finite as fp32");
}

TEST(Faults, ScalesThatAreNotFiniteOrNotPositive) {
  const std::string name = "mlp.experts.0.gate_proj.weight";
  const std::pair<float, const char*> cases[] = {{std::numeric_limits<float>::quiet_NaN(), "nan"},
                                                 {std::numeric_limits<float>::infinity(), "inf"},
                                                 {0.0F, "0"},
                                                 {-2.0F, "-2"}};
  for (const auto& [scale, text] : cases) {
    FileWriter file = qwen_with(name, "F8_E4M3", {3, 4}, Bytes(12, '8'));
    file.add_f32(kLayer + name + "_scale_inv", {1, 1}, {scale});
    EXPECT_EQ(complaint(file), std::string("f: tensor 'model.layers.3.") + name +
                                   "_scale_inv' has the scale " + text +
                                   " at [0,0], but scales are finite and above 0");
  }
  FileWriter nan_weight = qwen_with(name, "F8_E4M3", {3, 4}, Bytes(11, '8') + "\x7f");
  nan_weight.add_f32(kLayer + name + "_scale_inv", {1, 1}, {1});
  EXPECT_EQ(complaint(nan_weight), "f: tensor 'model.layers.3." + name +
                                       "' holds a value at [2,3] that is not finite as fp32");
  FileWriter large = qwen_with(name, "F8_E4M3", {3, 4}, Bytes(12, '\x7e'));
  large.add_f32(kLayer + name + "_scale_inv", {1, 1}, {1e38F});
  EXPECT_EQ(complaint(large), "f: tensor 'model.layers.3." + name +
                                  "' holds a value at [0,0] that is not finite as fp32");

  for (const bool is_nan : {true, false}) {  // MXFP4: 255 is NaN; 254 times 6 is beyond fp32
    const Block b{2, 32, 32, 0};
    FileWriter mxfp4;
    test::write_gpt_oss_around(mxfp4, b, kLayer);
    Bytes scales(2 * 64, '\x7f');
    scales[70] = is_nan ? '\xff' : '\xfe';
    mxfp4.add(kLayer + "mlp.experts.gate_up_proj_blocks", "U8", {2, 64, 1, 16},
              Bytes(2048, '\x77'));
    mxfp4.add(kLayer + "mlp.experts.gate_up_proj_scales", "U8", {2, 64, 1}, scales);
    mxfp4.add(kLayer + "mlp.experts.down_proj_blocks", "U8", {2, 32, 1, 16}, Bytes(1024, '\x77'));
    mxfp4.add(kLayer + "mlp.experts.down_proj_scales", "U8", {2, 32, 1}, Bytes(64, '\x7f'));
    EXPECT_EQ(complaint(mxfp4),
              is_nan
                  ? "f: tensor 'model.layers.3.mlp.experts.gate_up_proj_scales' has the scale nan "
                    "at [1,6,0], but scales are finite and above 0"
                  : "f: tensor 'model.layers.3.mlp.experts.gate_up_proj_blocks' holds a value at "
                    "[1,6,0] that is not finite as fp32");
  }
}

TEST(Faults, AFileCutShortAnywhereIsRefused) {
  const Bytes bytes = qwen_with("", "", {}, "").bytes();
  for (std::size_t size = 0; size < bytes.size(); ++size) {
    EXPECT_THROW(static_cast<void>(in_memory(bytes.substr(0, size))), Error) << size;
  }
  EXPECT_NO_THROW(static_cast<void>(in_memory(bytes)));
}

}  // namespace
}  // namespace moe::checkpoint
