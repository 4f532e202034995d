// moe inspect on checkpoints written here.
#include <gtest/gtest.h>

#include "checkpoint/write_layer.h"
#include "cli/run_command.h"
#include "report/schema_check.h"

namespace moe {
namespace {

using test::Block;
using test::FileWriter;
using test::Folder;
using test::run_moe;
using test::Said;

/// Layer 1 of E=2 H=10 I=7 S=5 in two shards, layer 0 dense.
void write_model(const Folder& folder) {
  const Block b{2, 10, 7, 5};
  FileWriter first;
  FileWriter second;
  first.add_bf16("model.layers.0.mlp.gate_proj.weight", {1, 2}, {1, 2});
  test::write_deepseek(first, b, "model.layers.1.");
  second.add_bf16("model.layers.1.input_layernorm.weight", {10}, test::numbers(10, 1));
  folder.write("a.safetensors", first.bytes());
  folder.write("b.safetensors", second.bytes());
  folder.write_index({{"a.safetensors", first.names()}, {"b.safetensors", second.names()}});
}

TEST(Inspect, ListsLayers) {
  const Folder folder;
  write_model(folder);
  const Said said = run_moe("inspect " + folder.path());
  EXPECT_EQ(said.code, 0) << said.err;
  EXPECT_NE(said.out.find(": 13 tensors in 2 files\n"), std::string::npos) << said.out;
  EXPECT_NE(said.out.find("    0  no MoE block         1  a.safetensors\n"), std::string::npos)
      << said.out;
  EXPECT_NE(said.out.find("    1  per-expert          12  a.safetensors, b.safetensors\n"),
            std::string::npos)
      << said.out;
  const test::Json json = test::Json::parse(run_moe("inspect --json " + folder.path()).out);
  EXPECT_EQ(json["layers"][0]["layout"], nullptr);
  EXPECT_EQ(json["layers"][1]["layout"], "per-expert");
}

TEST(Inspect, ListsEveryTensorOfALayer) {
  const Folder folder;
  write_model(folder);
  const Said said = run_moe("inspect --layer 1 " + folder.path());
  EXPECT_EQ(said.code, 0) << said.err;
  EXPECT_EQ(said.err, "");
  EXPECT_TRUE(
      said.out.starts_with("layer 1: layout per-expert, E=2 H=10 I=7, shared experts I=5\n"))
      << said.out;
  // Two matrices of 7 x 10 values of 2 bytes on one line.
  EXPECT_NE(
      said.out.find("consumed  gate                   2  BF16     [7,10]                    280"
                    "  model.layers.1.mlp.experts.{0-1}.gate_proj.weight in a.safetensors\n"),
      std::string::npos)
      << said.out;
  EXPECT_NE(
      said.out.find("ignored   not of the MoE block     1  BF16     [10]                       20"
                    "  model.layers.1.input_layernorm.weight in b.safetensors\n"),
      std::string::npos)
      << said.out;
  EXPECT_NE(said.out.find("11 consumed (1.16 KiB), 1 ignored (20 B), 0 missing; "
                          "files read: a.safetensors\n"),
            std::string::npos)
      << said.out;
  const test::Json json =
      test::Json::parse(run_moe("inspect --layer 1 --json " + folder.path()).out);
  EXPECT_EQ(json["tensors"].size(), 12U);
  EXPECT_EQ(json["shared_intermediate"], 5);
  EXPECT_EQ(json["problem"], nullptr);
  EXPECT_EQ(json["tensors"][0]["name"], "model.layers.1.mlp.experts.0.down_proj.weight");
  EXPECT_EQ(json["tensors"][0]["use"], "consumed");
  EXPECT_EQ(json["tensors"][0]["as"], "down");
  EXPECT_EQ(json["tensors"][0]["expert"], 0);
  EXPECT_EQ(json["tensors"][0]["dtype"], "BF16");
  EXPECT_EQ(json["tensors"][0]["shape"], (std::vector<int>{10, 7}));
  EXPECT_EQ(json["tensors"][0]["bytes"], 140);
  EXPECT_EQ(json["tensors"][0]["shard"], "a.safetensors");
}

TEST(Inspect, TellsWhatIsMissingAndExitsWithTwo) {
  const Folder folder;
  FileWriter file;
  file.add_bf16("layers.0.mlp.gate.weight", {3, 10}, test::numbers(30, 1));
  test::write_experts(file, {2, 10, 7, 0}, "layers.0.mlp.experts.",
                      {"gate_proj.weight", "up_proj.weight", "down_proj.weight"});
  const std::string path = folder.write("x.safetensors", file.bytes());
  const Said said = run_moe("inspect --layer 0 " + path);
  EXPECT_EQ(said.code, 2);
  EXPECT_EQ(
      said.err,
      "moe: layer 0 of layout per-expert lacks 'layers.0.mlp.experts.2.down_proj.weight' and 2 "
      "more tensors\n");
  EXPECT_NE(
      said.out.find("missing   down                   1  -        -                           0"
                    "  layers.0.mlp.experts.{2}.down_proj.weight in no file\n"),
      std::string::npos)
      << said.out;
  const Said none = run_moe("inspect --layer 7 " + path);
  EXPECT_EQ(none.code, 2);
  EXPECT_EQ(none.out, "");
  EXPECT_EQ(none.err, "moe: " + path + " has no layer 7: its layers are 0 to 0\n");
  EXPECT_EQ(run_moe("inspect " + path + " --layer -1").err,
            "moe: --layer: -1 is not between 0 and 1000000\n");
}

TEST(Inspect, NamesCannotDriveATerminal) {
  const Folder folder;
  FileWriter file;
  test::write_qwen(file, {2, 10, 7, 0}, "layers.0.");
  file.add_f32("layers.0.\x1b[2J", {1}, {1});
  const std::string path = folder.write("x.safetensors", file.bytes());
  const Said said = run_moe("inspect --layer 0 " + path);
  EXPECT_EQ(said.out.find('\x1b'), std::string::npos);
  EXPECT_NE(said.out.find("layers.0.\\x1b[2J"), std::string::npos) << said.out;
}

}  // namespace
}  // namespace moe
