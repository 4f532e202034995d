// What the fuzzer and the test that replays its corpus do with some bytes.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <span>
#include <string_view>
#include <vector>

#include "checkpoint/json_text.h"
#include "checkpoint/load.h"
#include "checkpoint/model_config.h"
#include "moe/error.h"

namespace moe::test {

/// Runs `body`; refusals are right, everything else that is thrown ends the process.
template <class Body>
void refuse_or_finish(const Body& body) {
  try {
    body();
  } catch (const Error& error) {
    if (error.code() == ErrorCode::kInternal || std::strlen(error.what()) == 0) std::abort();
  }
}

/// The bytes as a file of a checkpoint: header, layers, every value.
inline void read_checkpoint(std::span<const std::byte> bytes) {
  refuse_or_finish([&] {
    std::vector<checkpoint::SafetensorsFile> files;
    files.emplace_back("f", bytes);
    checkpoint::Checkpoint model = checkpoint::Checkpoint::of("m", std::move(files));
    std::size_t left = 4;  // layers to look into
    for (const checkpoint::LayerSummary& layer : checkpoint::list_layers(model)) {
      if (left-- == 0) break;
      for (const DType dtype : {DType::kF32, DType::kBF16}) {
        refuse_or_finish([&] {
          checkpoint::LayerPlan plan = checkpoint::plan_layer(model, layer.layer);
          checkpoint::describe_ignored(model, plan);
          static_cast<void>(checkpoint::load_layer(plan, dtype));
        });
      }
    }
  });
}

/// The bytes as they are; with the header's length corrected to end at the last brace, so that a
/// change of the header is not always a wrong length; as an index; and as a config.json.
inline void read_as_everything(std::span<const std::byte> bytes) {
  read_checkpoint(bytes);
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  const std::size_t brace = text.rfind('}');
  if (brace != std::string_view::npos && brace >= 8) {
    std::vector<std::byte> corrected(bytes.begin(), bytes.end());
    const std::uint64_t length = brace + 1 - 8;
    std::memcpy(corrected.data(), &length, sizeof(length));
    read_checkpoint(corrected);
  }
  refuse_or_finish([&] { static_cast<void>(checkpoint::parse_json("i", text)); });
  refuse_or_finish([&] { static_cast<void>(checkpoint::parse_config("m", std::string(text))); });
}

}  // namespace moe::test
