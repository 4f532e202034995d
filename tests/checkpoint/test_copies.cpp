// Matrices that are copied out of their files a chunk after the other, larger than one.
#include <gtest/gtest.h>

#include <filesystem>
#include <limits>

#include "checkpoint/expect_layer.h"
#include "checkpoint/load.h"
#include "checkpoint/write_layer.h"
#include "moe/error.h"

namespace moe::checkpoint {
namespace {

using test::Block;
using test::FileWriter;
using test::Folder;

const std::string kLayer = "model.layers.3.";
// 300 x 512 values of bf16: a chunk and a part of one; widened, several.
const Block kBlock{2, 512, 300, 0};

std::string write(const Folder& folder, const Block& block) {
  FileWriter file;
  test::write_qwen(file, block, kLayer);
  return folder.write("model.safetensors", file.bytes());
}

std::string complaint(const LayerPlan& plan, DType dtype) {
  try {
    static_cast<void>(load_layer(plan, dtype));
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kIo);
    return error.what();
  }
  return "";
}

TEST(Copies, EveryValueOfEveryChunkArrives) {
  const Folder folder;
  write(folder, kBlock);
  Checkpoint model = Checkpoint::open(folder.path());
  for (const DType dtype : {DType::kBF16, DType::kF32}) {
    const LayerContents contents = load_layer(plan_layer(model, 3), dtype);
    test::expect_experts(contents, kBlock);
    EXPECT_TRUE(contents.exact);
  }
}

TEST(Copies, TheFirstValueThatIsNotFiniteIsToldWhereverItsChunkIs) {
  Block broken = kBlock;
  const std::size_t expert = 1 * 300 * 512;
  broken.up[expert + 299 * 512 + 511] = std::numeric_limits<float>::infinity();
  broken.up[expert + 299 * 512 + 7] = std::numeric_limits<float>::quiet_NaN();
  const Folder folder;
  write(folder, broken);
  Checkpoint model = Checkpoint::open(folder.path());
  for (const DType dtype : {DType::kBF16, DType::kF32}) {
    const std::string said = complaint(plan_layer(model, 3), dtype);
    EXPECT_NE(said.find("experts.1.up_proj.weight' holds a value at [299,7] that is not finite"),
              std::string::npos)
        << said;
  }
}

TEST(Copies, AFileThatGotShorterIsRefused) {
  const Folder folder;
  const std::string path = write(folder, kBlock);
  Checkpoint model = Checkpoint::open(folder.path());
  const LayerPlan plan = plan_layer(model, 3);
  const auto size = std::filesystem::file_size(path);
  std::filesystem::resize_file(path, size - 1);
  EXPECT_EQ(complaint(plan, DType::kBF16), path + " had " + std::to_string(size) +
                                               " bytes when it was opened and now ends at " +
                                               std::to_string(size - 1));
}

}  // namespace
}  // namespace moe::checkpoint
