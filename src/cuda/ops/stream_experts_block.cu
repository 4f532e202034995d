// stream_gate_up() and stream_down() for layers that are not plain.
#include "cuda/ops/stream_experts_parts.cuh"

namespace moe::cuda {

void stream_block_gate_up(const StreamProductCall& call) {
  launch_product<BlockGateUp>(call, call.work.block.gated ? 8 : 16);
}

void stream_block_down(const StreamProductCall& call) {
  launch_product<BlockDown>(call, 16);
}

}  // namespace moe::cuda
