#include "cli/checkpoint_data.h"

#include <algorithm>

#include "cli/parse.h"
#include "core/check.h"
#include "core/memory.h"
#include "core/text.h"

namespace moe::cli {

std::shared_ptr<CheckpointData> open_checkpoint(const std::string& text) {
  constexpr std::string_view kPrefix = "ckpt:";
  constexpr std::int64_t kMostLayers = 1000000;
  const std::size_t hash = text.rfind('#');
  MOE_CHECK(text.starts_with(kPrefix) && hash != std::string::npos && hash > kPrefix.size(),
            "--data: '{}' is not ckpt:DIR#LAYER", text);
  const std::int64_t layer =
      parse_integer("--data", std::string_view(text).substr(hash + 1), 0, kMostLayers);
  auto data = std::make_shared<CheckpointData>();
  data->text = text;
  data->model = checkpoint::Checkpoint::open(text.substr(kPrefix.size(), hash - kPrefix.size()));
  data->config = checkpoint::read_config(data->model);
  data->plan = checkpoint::plan_layer(data->model, layer);
  return data;
}

checkpoint::LayerContents load_weights(const CheckpointData& data, const Problem& problem) {
  const std::uint64_t needed = weight_bytes(problem);
  const std::uint64_t available = available_memory();
  if (needed > available) {
    throw Error(ErrorCode::kOutOfMemory,
                fmt::format("the weights of {} in {} need {}, {} available", data.text,
                            name_of(problem.dtype), format_bytes(needed), format_bytes(available)),
                needed);
  }
  return checkpoint::load_layer(data.plan, problem.dtype);
}

std::string shell_word(const std::string& text) {
  constexpr std::string_view kPlain = "_-./:#=,+@%";
  const bool plain = std::all_of(text.begin(), text.end(), [&](char letter) {
    return (letter >= '0' && letter <= '9') || (letter >= 'a' && letter <= 'z') ||
           (letter >= 'A' && letter <= 'Z') || kPlain.find(letter) != std::string_view::npos;
  });
  if (plain) return text;
  std::string word = "'";
  for (const char letter : text) {
    if (letter == '\'') {
      word += "'\\''";
    } else {
      word += letter;
    }
  }
  return word + "'";
}

}  // namespace moe::cli
