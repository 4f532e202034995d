// libFuzzer's door to the checkpoint reader; docs/checkpoints.md says how to run it.
#include <nlohmann/json.hpp>

#include "fuzz/checkpoint_input.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  moe::test::read_as_everything(std::as_bytes(std::span(data, size)));
  return 0;
}
