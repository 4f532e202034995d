// --data ckpt:DIR#LAYER and --io on checkpoints and outputs written here.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>

#include "checkpoint/write_layer.h"
#include "cli/checkpoint_data.h"
#include "cli/run_command.h"
#include "report/schema_check.h"
#include "verify/textbook.h"

namespace moe {
namespace {

using test::Block;
using test::FileWriter;
using test::Folder;
using test::run_moe;
using test::Said;

const std::string kOptions = " --backend cpu --threads 1 --tune-seconds 0 ";
constexpr std::int64_t kTopK = 2;

/// Layer 1 of a Mixtral; E=4 H=64 I=32.
struct Model {
  Folder folder;
  Block block{4, 64, 32, 0};
  std::string data = "ckpt:" + folder.path() + "#1";

  explicit Model(const std::string& config =
                     R"({"model_type":"mixtral","num_experts_per_tok":2,"hidden_act":"silu"})") {
    // Values of the size that trained matrices have.
    for (std::vector<float>* values : {&block.gate, &block.up, &block.down}) {
      for (float& value : *values) value /= 8;
    }
    FileWriter file;
    test::write_mixtral(file, block, "model.layers.1.");
    folder.write("model.safetensors", file.bytes());
    folder.write("config.json", config);
  }
};

TEST(CheckpointData, EveryLevelIsVerifiedOnTheWeights) {
  const Model model;
  const Said said = run_moe("verify --axis tokens=3,5 --data '" + model.data + "'" + kOptions);
  EXPECT_EQ(said.code, 0) << said.out << said.err;
  for (const char* text : {"0 naive         fp32 T=3 H=64 I=32 E=4 K=2  ok: ", "T=5 H=64"}) {
    EXPECT_NE(said.out.find(text), std::string::npos) << said.out;
  }
  EXPECT_EQ(run_moe("verify --dtype bf16 --data '" + model.data + "'" + kOptions).code, 0);
}

TEST(CheckpointData, BenchRunMeasuresItAndNamesIt) {
  const Model model;
  const std::string run = "bench run -q --format json -t moe_journey:memefficient";
  const Said said = run_moe(run + " --data '" + model.data + "'" + kOptions);
  ASSERT_EQ(said.code, 0) << said.err;
  EXPECT_EQ(test::schema_errors(said.out), "");
  const test::Json object = test::Json::parse(said.out);
  EXPECT_EQ(object["run"]["data"], model.data);
  EXPECT_EQ(object["rows"][0]["verified"], true);
  EXPECT_EQ(object["rows"][0]["tokens"], 64);
  EXPECT_EQ(object["rows"][0]["hidden"], 64);
  EXPECT_EQ(object["rows"][0]["experts"], 4);
  // The command that is said to measure the row again does.
  const std::string repro = object["rows"][0]["repro"];
  ASSERT_TRUE(repro.starts_with("./moe bench run ")) << repro;
  EXPECT_NE(repro.find("--data " + model.data + " --axis tokens=64 "), std::string::npos) << repro;
  const Said again = run_moe(repro.substr(6) + " -q --format json");
  EXPECT_EQ(again.code, 0) << again.err;
  const Said table =
      run_moe("bench run -q -t moe_journey:memefficient --data '" + model.data + "'" + kOptions);
  EXPECT_NE(table.out.find(model.data + "  cpu fp32"), std::string::npos) << table.out;
  const Said seeded = run_moe(run + " --thiek 4,64,32,4,2" + kOptions);
  EXPECT_FALSE(test::Json::parse(seeded.out)["run"].contains("data"));
}

TEST(CheckpointData, ItsRowsAreNotComparedWithSeededOnes) {
  const Model model;
  const std::string run = "bench run -q --format json -t moe_journey:memefficient";
  const std::string ours =
      model.folder.write("a.json", run_moe(run + " --data '" + model.data + "'" + kOptions).out);
  const std::string seeded =
      model.folder.write("b.json", run_moe(run + " --thiek 64,64,32,4,2" + kOptions).out);
  EXPECT_EQ(run_moe("bench compare " + ours + " " + ours).code, 0);
  EXPECT_EQ(run_moe("bench compare " + ours + " " + seeded).code, 2);
  const Said live = run_moe("bench compare -q --live " + ours);
  EXPECT_EQ(live.code, 0) << live.err;
}

TEST(CheckpointData, RefusalsAreOneSentence) {
  const Model model;
  const Model olmoe(R"({"model_type":"olmoe","num_experts_per_tok":2})");
  const std::tuple<std::string, int, std::string> cases[] = {
      {"--data zeros", 2, "--data: 'zeros' is not ckpt:DIR#LAYER"},
      {"--data ckpt:x", 2, "--data: 'ckpt:x' is not ckpt:DIR#LAYER"},
      {"--data 'ckpt:#1'", 2, "--data: 'ckpt:#1' is not ckpt:DIR#LAYER"},
      {"--data 'ckpt:x#y'", 2, "--data: 'y' is not a whole number"},
      {"--data 'ckpt:/none#1'", 2, "cannot read /none: no such file or folder"},
      {"--data '" + model.data + "' --preset lab", 2,
       "--data " + model.data + " and --preset lab both give the shape; use one"},
      {"--data '" + model.data + "' --thiek 1,2,3,4,1", 2,
       "--data " + model.data + " and --thiek 1,2,3,4,1 both give the shape; use one"},
      {"--data '" + model.data + "' --skew zipf:1", 2,
       "--skew zipf:1 is made by seeded weights; those of --data " + model.data +
           " route as they do"},
      {"--data '" + olmoe.data + "'", 6,
       "layer 1 (olmoe, layout mixtral) needs what is not computed: norm_topk_prob, which "
       "config.json does not tell"},
      {"--router sigmoid --data '" + model.data + "'", 2,
       "--data " + model.data + " has its own router, activation, biases and shared expert"},
      {"--fuzz 3 --data '" + model.data + "'", 2,
       "--fuzz 3 makes its own problems: without --data and --io"},
      {"--io x.safetensors", 2,
       "--io x.safetensors: whose weights made its y? give the layer with --data ckpt:DIR#LAYER"},
      {"--io x.safetensors --axis tokens=3 --data '" + model.data + "'", 2,
       "--axis tokens=3: the tokens of --io x.safetensors are its rows"}};
  for (const auto& [arguments, code, message] : cases) {
    const Said said = run_moe("verify " + arguments);
    EXPECT_EQ(said.code, code) << arguments;
    EXPECT_EQ(said.out, "") << arguments;
    EXPECT_EQ(said.err, "moe: " + message + "\n");
  }
}

TEST(CheckpointData, ShellWords) {
  EXPECT_EQ(cli::shell_word("ckpt:/a/b-1.0#3"), "ckpt:/a/b-1.0#3");
  EXPECT_EQ(cli::shell_word("a b"), "'a b'");
  EXPECT_EQ(cli::shell_word("it's"), "'it'\\''s'");
}

/// x of T=5, and y as an independent program computes it, with a mistake or without.
struct Outputs {
  std::vector<float> x = test::numbers(5 * 64, 40);
  std::vector<float> y;

  Outputs(const Block& b, DType dtype, const textbook::Mutation& mutation = {}) {
    const Problem problem{
        .shape = {.tokens = 5, .hidden = b.h, .intermediate = b.i, .experts = b.e, .top_k = kTopK},
        .dtype = dtype};
    const auto tensor = [&](const std::vector<float>& values,
                            std::initializer_list<std::int64_t> sizes) {
      Tensor out(dtype, sizes);
      for (std::size_t i = 0; i < values.size(); ++i) {
        if (dtype == DType::kF32) {
          out.as<float>()[i] = values[i];
        } else {
          out.as<BFloat16>()[i] = to_bfloat16(values[i]);
        }
      }
      return out;
    };
    const Tensor router = tensor(b.router, {b.e, b.h});
    const Tensor gate = tensor(b.gate, {b.e, b.i, b.h});
    const Tensor up = tensor(b.up, {b.e, b.i, b.h});
    const Tensor down = tensor(b.down, {b.e, b.h, b.i});
    const Tensor input = tensor(x, {5, b.h});
    const Tensor output(dtype, {5, b.h});
    textbook::forward(problem, {router.view(), gate.view(), up.view(), down.view()}, input.view(),
                      output.view(), mutation);
    for (std::int64_t i = 0; i < 5 * b.h; ++i) {
      y.push_back(dtype == DType::kF32 ? output.as<float>()[i]
                                       : to_float(output.as<BFloat16>()[i]));
    }
  }
  [[nodiscard]] FileWriter file() const {
    FileWriter writer;
    writer.add_f32("x", {5, 64}, x).add_f32("y", {5, 64}, y);
    return writer;
  }
};

Said verify_io(const Model& model, const FileWriter& file, const std::string& more = "") {
  const std::string path = model.folder.write("io", file.bytes());
  return run_moe("verify --data '" + model.data + "' --io " + path + kOptions + more);
}

TEST(VerifyIo, TheOutputsOfAnotherProgramAreMatchedByEveryLevel) {
  const Model model;
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    const Said said = verify_io(model, Outputs(model.block, dtype).file(),
                                dtype == DType::kBF16 ? " --dtype bf16" : "");
    EXPECT_EQ(said.code, 0) << said.out << said.err;
    EXPECT_NE(said.out.find("- fp64 oracle   "), std::string::npos) << said.out;
    EXPECT_NE(said.out.find("0 naive         "), std::string::npos) << said.out;
    EXPECT_NE(said.out.find(" % of tolerance; 5 rows compared"), std::string::npos) << said.out;
    EXPECT_EQ(said.out.find("FAILED"), std::string::npos) << said.out;
  }
  // fp32's tolerance is not met by an output that was rounded to bf16 between the steps.
  EXPECT_EQ(verify_io(model, Outputs(model.block, DType::kBF16).file()).code, 3);
}

TEST(VerifyIo, AMistakeExitsWithThreeAndNamesTheWorstRow) {
  const Model model;
  const Said wrong = verify_io(
      model, Outputs(model.block, DType::kF32, {.renormalise = false}).file(), " -t moe_journey:3");
  EXPECT_EQ(wrong.code, 3) << wrong.out;
  Outputs one(model.block, DType::kF32);
  one.y[3 * 64 + 7] += 0.5F;
  const Said said = verify_io(model, one.file(), " -t moe_journey:memefficient");
  EXPECT_EQ(said.code, 3) << said.out;
  EXPECT_NE(said.out.find("3 memefficient  fp32 T=5 H=64 I=32 E=4 K=2  FAILED: row error "),
            std::string::npos)
      << said.out;
  EXPECT_NE(said.out.find(" at token 3, "), std::string::npos) << said.out;
}

TEST(VerifyIo, FilesThatCannotBeComparedAreRefused) {
  const Model model;
  const Outputs good(model.block, DType::kF32);
  const std::string path = model.folder.path() + "/io";
  FileWriter no_y;
  no_y.add_f32("x", {5, 64}, good.x);
  FileWriter narrow;
  narrow.add_f32("x", {5, 32}, test::numbers(160, 1)).add_f32("y", {5, 32}, test::numbers(160, 1));
  FileWriter other;
  other.add_f32("x", {5, 64}, good.x).add_f32("y", {4, 64}, test::numbers(256, 1));
  FileWriter half;
  half.add_bf16("x", {5, 64}, good.x).add_f32("y", {5, 64}, good.y);
  Outputs odd = good;
  odd.x[64] = 0.1F;
  Outputs nan = good;
  nan.y[65] = std::nanf("");
  const std::tuple<FileWriter, std::string, std::string> cases[] = {
      {no_y, "", path + " has no tensor 'y', only 1 others"},
      {narrow, "", path + ": x is fp32[5,32], but H=64 in " + model.data},
      {other, "",
       path + ": x is fp32[5,64] and y is fp32[4,64], but both are [T,H] with at least one row"},
      {half, "", path + ": tensor 'x' is BF16 [5,64], but --io needs F32"},
      {odd.file(), " --dtype bf16",
       path + ": x[1,0] is 0.1, which is no bf16 number: use --dtype fp32, or round x before y is "
              "computed from it"},
      {nan.file(), "", path + ": tensor 'y' holds a value at [1,1] that is not finite as fp32"}};
  for (const auto& [file, more, message] : cases) {
    const Said said = verify_io(model, file, more);
    EXPECT_EQ(said.code, 2) << message;
    EXPECT_EQ(said.out, "");
    EXPECT_EQ(said.err, "moe: " + message + "\n");
  }
}

}  // namespace
}  // namespace moe
