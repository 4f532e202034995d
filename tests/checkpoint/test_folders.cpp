// Folders of a checkpoint: which shards are opened, what their index may say, the layers by name.
#include <gtest/gtest.h>

#include "checkpoint/expect_layer.h"
#include "checkpoint/load.h"
#include "checkpoint/write_layer.h"
#include "core/check.h"

namespace moe::checkpoint {
namespace {

using test::Block;
using test::expect_experts;
using test::FileWriter;
using test::Folder;

const std::string kLayer = "model.layers.3.";

std::string open_complaint(const std::string& path) {
  try {
    static_cast<void>(Checkpoint::open(path));
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kIo);
    return error.what();
  }
  return "";
}

TEST(Folders, OneFileAndItsConfiguration) {
  const Folder folder;
  const Block b{2, 4, 3, 0};
  FileWriter file;
  test::write_qwen(file, b, kLayer);
  const std::string path = folder.write("model.safetensors", file.bytes());
  folder.write("config.json", "{}");
  for (const std::string& each : {folder.path(), path}) {
    Checkpoint model = Checkpoint::open(each);
    expect_experts(load_layer(plan_layer(model, 3), DType::kF32), b);
    EXPECT_EQ(model.config(), "{}");
  }
}

TEST(Folders, WithAnIndexOnlyTheLayersShardsAreOpened) {
  const Folder folder;
  const Block b{2, 4, 3, 0};
  FileWriter router;
  FileWriter experts;
  router.add_bf16(kLayer + "mlp.gate.weight", {b.e, b.h}, b.router);
  test::write_experts(experts, b, kLayer + "mlp.experts.",
                      {"gate_proj.weight", "up_proj.weight", "down_proj.weight"});
  folder.write("a.safetensors", router.bytes());
  folder.write("b.safetensors", experts.bytes());
  folder.write("unlisted.safetensors", "not a checkpoint");
  // c does not exist: attention and another layer are there, and nobody asks for them.
  folder.write_index(
      {{"a.safetensors", router.names()},
       {"b.safetensors", experts.names()},
       {"c.safetensors", {"model.layers.2.mlp.gate.weight", kLayer + "self_attn.q_proj.weight"}}});
  Checkpoint model = Checkpoint::open(folder.path());
  EXPECT_EQ(model.opened().size(), 0U);
  LayerPlan plan = plan_layer(model, 3);
  EXPECT_EQ(model.opened(), (std::vector<std::string>{"a.safetensors", "b.safetensors"}));
  expect_experts(load_layer(plan, DType::kBF16), b);
  ASSERT_EQ(plan.with(Use::kIgnored).size(), 1U);
  EXPECT_EQ(plan.with(Use::kIgnored)[0]->reason, "not of the MoE block");
  EXPECT_THROW(describe_ignored(model, plan), Error);
}

TEST(Folders, ShardsWithoutAnIndex) {
  const Folder folder;
  const Block b{2, 4, 3, 0};
  FileWriter router;
  FileWriter experts;
  router.add_bf16(kLayer + "mlp.gate.weight", {b.e, b.h}, b.router);
  test::write_experts(experts, b, kLayer + "mlp.experts.",
                      {"gate_proj.weight", "up_proj.weight", "down_proj.weight"});
  folder.write("x-1.safetensors", router.bytes());
  folder.write("x-2.safetensors", experts.bytes());
  Checkpoint model = Checkpoint::open(folder.path());
  expect_experts(load_layer(plan_layer(model, 3), DType::kBF16), b);
  folder.write("x-3.safetensors", router.bytes());
  EXPECT_EQ(open_complaint(folder.path()),
            folder.path() +
                ": tensor 'model.layers.3.mlp.gate.weight' is in both x-1.safetensors "
                "and x-3.safetensors");
}

TEST(Folders, WhatIsWrongWithFoldersAndIndexes) {
  const Folder folder;
  const std::string& path = folder.path();
  const std::string index = path + "/model.safetensors.index.json";
  EXPECT_EQ(open_complaint(path + "/none"),
            "cannot read " + path + "/none: no such file or folder");
  EXPECT_EQ(open_complaint(path),
            path + " has neither model.safetensors.index.json nor a file *.safetensors");
  const std::pair<const char*, const char*> cases[] = {
      {"[]", " has no object 'weight_map'"},
      {R"({"weight_map":[]})", " has no object 'weight_map'"},
      {R"({"weight_map":{"a":1}})", ": the shard of 'a' is not a text"},
      {R"({"weight_map":{"a":"../b.safetensors"}})",
       ": the shard '../b.safetensors' of 'a' is not the name of a file *.safetensors"},
      {R"({"weight_map":{"a":"config.json"}})",
       ": the shard 'config.json' of 'a' is not the name of a file *.safetensors"},
      {R"({"weight_map":{"a":"b.safetensors","a":"c.safetensors"}})",
       " has the key 'a' twice in one object"},
      {R"({"weight_map":)", " is not JSON: the error is at byte 14 of 14"}};
  for (const auto& [text, message] : cases) {
    folder.write("model.safetensors.index.json", text);
    EXPECT_EQ(open_complaint(path), index + message);
  }
  FileWriter file;
  file.add_f32("a", {1}, {1}).add_f32("b", {1}, {2});
  folder.write("model.safetensors", file.bytes());
  folder.write_index({{"s.safetensors", {"a"}}});
  EXPECT_EQ(open_complaint(path), path +
                                      " has both model.safetensors and "
                                      "model.safetensors.index.json, which does not list it; "
                                      "remove one of them");
}

TEST(Folders, AnIndexThatDisagreesWithItsShards) {
  const Folder folder;
  FileWriter file;
  file.add_f32("a", {1}, {1}).add_f32("b", {1}, {2});
  const std::string shard = folder.write("s.safetensors", file.bytes());
  const auto message = [&](const std::map<std::string, std::vector<std::string>>& tensors) {
    folder.write_index(tensors);
    Checkpoint model = Checkpoint::open(folder.path());
    try {
      static_cast<void>(model.locate("a"));
    } catch (const Error& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  EXPECT_EQ(message({{"s.safetensors", {"a", "b"}}}), "");
  EXPECT_EQ(message({{"s.safetensors", {"a"}}}),
            shard + " holds tensor 'b', which model.safetensors.index.json does not list");
  EXPECT_EQ(message({{"s.safetensors", {"a"}}, {"t.safetensors", {"b"}}}),
            shard + " holds tensor 'b', which model.safetensors.index.json has in t.safetensors");
  EXPECT_EQ(message({{"s.safetensors", {"a", "b", "c"}}}), "");
  folder.write_index({{"s.safetensors", {"a", "b", "c"}}, {"t.safetensors", {"d"}}});
  Checkpoint model = Checkpoint::open(folder.path());
  EXPECT_THROW(static_cast<void>(model.locate("c")), Error);
  EXPECT_THROW(static_cast<void>(model.locate("d")), Error);
  EXPECT_THROW(static_cast<void>(model.locate("e")), Error);
}

TEST(Overview, ListsEveryLayerFromNamesAlone) {
  const Folder folder;
  folder.write_index({{"a.safetensors",
                       {"model.layers.0.mlp.gate_proj.weight", "model.layers.1.mlp.gate.weight",
                        "model.layers.1.mlp.experts.0.gate_proj.weight", "lm_head.weight"}},
                      {"b.safetensors", {"model.layers.1.mlp.experts.1.gate_proj.weight"}}});
  const std::vector<LayerSummary> layers = list_layers(Checkpoint::open(folder.path()));
  ASSERT_EQ(layers.size(), 2U);
  EXPECT_EQ(layers[0].layout, "");
  EXPECT_EQ(layers[0].tensors, 1);
  EXPECT_EQ(layers[1].layer, 1);
  EXPECT_EQ(layers[1].layout, "per-expert");
  EXPECT_EQ(layers[1].tensors, 3);
  EXPECT_EQ(layers[1].shards, (std::vector<std::string>{"a.safetensors", "b.safetensors"}));
}

}  // namespace
}  // namespace moe::checkpoint
