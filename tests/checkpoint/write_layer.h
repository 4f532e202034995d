// A small MoE block, and how each family of models stores it.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "checkpoint/write_checkpoint.h"

namespace moe::test {

/// The values as the levels take them: gate and up [E,I,H], down [E,H,I], shared [S,H] and [H,S].
struct Block {
  std::int64_t e, h, i, s;
  std::vector<float> router = numbers(e * h, 1);
  std::vector<float> gate = numbers(e * i * h, 2);
  std::vector<float> up = numbers(e * i * h, 3);
  std::vector<float> down = numbers(e * h * i, 4);
  std::vector<float> router_bias = numbers(e, 5);
  std::vector<float> selection_bias = numbers(e, 6);
  std::vector<float> gate_bias = numbers(e * i, 7);
  std::vector<float> up_bias = numbers(e * i, 8);
  std::vector<float> down_bias = numbers(e * h, 9);
  std::vector<float> shared_gate = numbers(s * h, 10);
  std::vector<float> shared_up = numbers(s * h, 11);
  std::vector<float> shared_down = numbers(h * s, 12);
  std::vector<float> shared_switch = numbers(h, 13);
};

/// `count` values of `all` from the first of slice `slice` on.
inline std::vector<float> slice(const std::vector<float>& all, std::int64_t number,
                                std::int64_t count) {
  return {all.begin() + number * count, all.begin() + (number + 1) * count};
}

/// [rows, columns] made of value(row, column).
inline std::vector<float> matrix(
    std::int64_t rows, std::int64_t columns,
    const std::function<float(std::int64_t row, std::int64_t column)>& value) {
  std::vector<float> out;
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t column = 0; column < columns; ++column) out.push_back(value(row, column));
  }
  return out;
}

/// [E, rows, columns] made of value(expert, row, column).
inline std::vector<float> cube(
    std::int64_t experts, std::int64_t rows, std::int64_t columns,
    const std::function<float(std::int64_t e, std::int64_t row, std::int64_t column)>& value) {
  std::vector<float> out;
  for (std::int64_t e = 0; e < experts; ++e) {
    const std::vector<float> part = matrix(
        rows, columns, [&](std::int64_t row, std::int64_t col) { return value(e, row, col); });
    out.insert(out.end(), part.begin(), part.end());
  }
  return out;
}

/// gate, up or down of expert e at (row, column) as the levels take them.
inline float at(const std::vector<float>& all, std::int64_t rows, std::int64_t columns,
                std::int64_t e, std::int64_t row, std::int64_t column) {
  return all[static_cast<std::size_t>((e * rows + row) * columns + column)];
}

struct ExpertNames {
  std::string gate, up, down;
};

/// A tensor per expert, below `experts` ("model.layers.3.mlp.experts.").
inline void write_experts(FileWriter& file, const Block& b, const std::string& experts,
                          const ExpertNames& names) {
  for (std::int64_t e = 0; e < b.e; ++e) {
    const std::string expert = experts + std::to_string(e) + ".";
    file.add_bf16(expert + names.gate, {b.i, b.h}, slice(b.gate, e, b.i * b.h));
    file.add_bf16(expert + names.down, {b.h, b.i}, slice(b.down, e, b.h * b.i));
    file.add_bf16(expert + names.up, {b.i, b.h}, slice(b.up, e, b.i * b.h));
  }
}

inline void write_mixtral(FileWriter& file, const Block& b, const std::string& layer) {
  file.add_bf16(layer + "block_sparse_moe.gate.weight", {b.e, b.h}, b.router);
  write_experts(file, b, layer + "block_sparse_moe.experts.",
                {"w1.weight", "w3.weight", "w2.weight"});
}

inline void write_shared(FileWriter& file, const Block& b, const std::string& shared) {
  file.add_bf16(shared + "gate_proj.weight", {b.s, b.h}, b.shared_gate);
  file.add_bf16(shared + "up_proj.weight", {b.s, b.h}, b.shared_up);
  file.add_bf16(shared + "down_proj.weight", {b.h, b.s}, b.shared_down);
}

/// Qwen3-MoE, OLMoE.
inline void write_qwen(FileWriter& file, const Block& b, const std::string& layer) {
  file.add_bf16(layer + "mlp.gate.weight", {b.e, b.h}, b.router);
  write_experts(file, b, layer + "mlp.experts.",
                {"gate_proj.weight", "up_proj.weight", "down_proj.weight"});
}

/// DeepSeek-V3, GLM.
inline void write_deepseek(FileWriter& file, const Block& b, const std::string& layer) {
  write_qwen(file, b, layer);
  file.add_f32(layer + "mlp.gate.e_score_correction_bias", {b.e}, b.selection_bias);
  write_shared(file, b, layer + "mlp.shared_experts.");
}

/// Qwen3.5-MoE: [E,2I,H], gate rows first.
inline void write_fused(FileWriter& file, const Block& b, const std::string& layer) {
  file.add_bf16(layer + "mlp.gate.weight", {b.e, b.h}, b.router);
  file.add_bf16(layer + "mlp.experts.gate_up_proj", {b.e, 2 * b.i, b.h},
                cube(b.e, 2 * b.i, b.h, [&](std::int64_t e, std::int64_t row, std::int64_t column) {
                  return row < b.i ? at(b.gate, b.i, b.h, e, row, column)
                                   : at(b.up, b.i, b.h, e, row - b.i, column);
                }));
  file.add_bf16(layer + "mlp.experts.down_proj", {b.e, b.h, b.i}, b.down);
  write_shared(file, b, layer + "mlp.shared_expert.");
  file.add_bf16(layer + "mlp.shared_expert_gate.weight", {1, b.h}, b.shared_switch);
}

/// down as [E,I,H].
inline std::vector<float> transposed_down(const Block& b) {
  return cube(b.e, b.i, b.h, [&](std::int64_t e, std::int64_t row, std::int64_t column) {
    return at(b.down, b.h, b.i, e, column, row);
  });
}

/// Llama-4: [E,H,2I], gate columns first.
inline void write_llama4(FileWriter& file, const Block& b, const std::string& layer) {
  file.add_bf16(layer + "feed_forward.router.weight", {b.e, b.h}, b.router);
  file.add_bf16(layer + "feed_forward.experts.gate_up_proj", {b.e, b.h, 2 * b.i},
                cube(b.e, b.h, 2 * b.i, [&](std::int64_t e, std::int64_t row, std::int64_t column) {
                  return column < b.i ? at(b.gate, b.i, b.h, e, column, row)
                                      : at(b.up, b.i, b.h, e, column - b.i, row);
                }));
  file.add_bf16(layer + "feed_forward.experts.down_proj", {b.e, b.i, b.h}, transposed_down(b));
  write_shared(file, b, layer + "feed_forward.shared_expert.");
}

inline void write_gpt_oss_around(FileWriter& file, const Block& b, const std::string& layer) {
  file.add_bf16(layer + "mlp.router.weight", {b.e, b.h}, b.router);
  file.add_bf16(layer + "mlp.router.bias", {b.e}, b.router_bias);
  file.add_bf16(layer + "mlp.experts.gate_up_proj_bias", {b.e, 2 * b.i},
                matrix(b.e, 2 * b.i, [&](std::int64_t e, std::int64_t column) {
                  return at(column % 2 == 0 ? b.gate_bias : b.up_bias, 1, b.i, e, 0, column / 2);
                }));
  file.add_bf16(layer + "mlp.experts.down_proj_bias", {b.e, b.h}, b.down_bias);
}

/// gpt-oss in bf16: [E,H,2I], gate and up columns in turn.
inline void write_gpt_oss(FileWriter& file, const Block& b, const std::string& layer) {
  write_gpt_oss_around(file, b, layer);
  file.add_bf16(layer + "mlp.experts.gate_up_proj", {b.e, b.h, 2 * b.i},
                cube(b.e, b.h, 2 * b.i, [&](std::int64_t e, std::int64_t row, std::int64_t column) {
                  return at(column % 2 == 0 ? b.gate : b.up, b.i, b.h, e, column / 2, row);
                }));
  file.add_bf16(layer + "mlp.experts.down_proj", {b.e, b.i, b.h}, transposed_down(b));
}

/// MXFP4 blocks and scales of values that are `code` * 2^(scale - 127), drawn from `seed`: rows of
/// `columns` values. Returns the values.
inline std::vector<float> draw_mxfp4(std::int64_t rows, std::int64_t columns, std::uint64_t seed,
                                     Bytes& blocks, Bytes& scales) {
  constexpr float kValues[] = {0,     0.5F,  1,  1.5F,  2,  3,  4,  6,
                               -0.0F, -0.5F, -1, -1.5F, -2, -3, -4, -6};
  std::vector<float> values;
  for (std::int64_t block = 0; block < rows * columns / 32; ++block) {
    const auto scale = static_cast<std::uint8_t>(
        120 + random_bits(seed, 1, static_cast<std::uint64_t>(block)) % 12);
    scales.push_back(static_cast<char>(scale));
    for (std::uint64_t pair = 0; pair < 16; ++pair) {
      const auto byte = static_cast<std::uint8_t>(
          random_bits(seed, 2, static_cast<std::uint64_t>(block) * 16 + pair));
      blocks.push_back(static_cast<char>(byte));
      for (const int code : {byte % 16, byte / 16}) {
        values.push_back(std::ldexp(kValues[code], scale - 127));
      }
    }
  }
  return values;
}

/// gpt-oss in MXFP4: [E,2I,H/32,16], gate and up rows in turn. Sets the experts' values of `b`.
inline void write_gpt_oss_mxfp4(FileWriter& file, Block& b, const std::string& layer) {
  write_gpt_oss_around(file, b, layer);
  Bytes blocks;
  Bytes scales;
  const std::vector<float> gate_up = draw_mxfp4(b.e * 2 * b.i, b.h, 21, blocks, scales);
  for (std::int64_t e = 0; e < b.e; ++e) {
    for (std::int64_t row = 0; row < b.i; ++row) {
      for (std::int64_t column = 0; column < b.h; ++column) {
        const auto to = static_cast<std::size_t>((e * b.i + row) * b.h + column);
        b.gate[to] = at(gate_up, 2 * b.i, b.h, e, 2 * row, column);
        b.up[to] = at(gate_up, 2 * b.i, b.h, e, 2 * row + 1, column);
      }
    }
  }
  file.add(layer + "mlp.experts.gate_up_proj_blocks", "U8", {b.e, 2 * b.i, b.h / 32, 16}, blocks);
  file.add(layer + "mlp.experts.gate_up_proj_scales", "U8", {b.e, 2 * b.i, b.h / 32}, scales);
  blocks.clear();
  scales.clear();
  b.down = draw_mxfp4(b.e * b.h, b.i, 22, blocks, scales);
  file.add(layer + "mlp.experts.down_proj_blocks", "U8", {b.e, b.h, b.i / 32, 16}, blocks);
  file.add(layer + "mlp.experts.down_proj_scales", "U8", {b.e, b.h, b.i / 32}, scales);
}

/// Granite-MoE: [E,2I,H], gate rows first; the shared MLP likewise.
inline void write_granite(FileWriter& file, const Block& b, const std::string& layer) {
  file.add_bf16(layer + "block_sparse_moe.router.layer.weight", {b.e, b.h}, b.router);
  file.add_bf16(layer + "block_sparse_moe.input_linear.weight", {b.e, 2 * b.i, b.h},
                cube(b.e, 2 * b.i, b.h, [&](std::int64_t e, std::int64_t row, std::int64_t column) {
                  return row < b.i ? at(b.gate, b.i, b.h, e, row, column)
                                   : at(b.up, b.i, b.h, e, row - b.i, column);
                }));
  file.add_bf16(layer + "block_sparse_moe.output_linear.weight", {b.e, b.h, b.i}, b.down);
  if (b.s == 0) return;
  std::vector<float> both = b.shared_gate;
  both.insert(both.end(), b.shared_up.begin(), b.shared_up.end());
  file.add_bf16(layer + "shared_mlp.input_linear.weight", {2 * b.s, b.h}, both);
  file.add_bf16(layer + "shared_mlp.output_linear.weight", {b.h, b.s}, b.shared_down);
}

/// An FP8 weight [rows, columns] with a scale per 128x128 block, drawn from `seed`; `values` receives
/// what it stands for.
inline void write_fp8(FileWriter& file, const std::string& name, std::int64_t rows,
                      std::int64_t columns, std::uint64_t seed, float* values) {
  const std::int64_t scale_columns = (columns + 127) / 128;
  std::vector<float> scales;
  for (std::int64_t i = 0; i < (rows + 127) / 128 * scale_columns; ++i) {
    scales.push_back(0.01F + 0.003F * static_cast<float>(i));
  }
  Bytes bytes;
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t column = 0; column < columns; ++column) {
      auto byte = static_cast<std::uint8_t>(
          random_bits(seed, 3, static_cast<std::uint64_t>(row * columns + column)));
      if ((byte & 0x7fU) == 0x7fU) byte = 0x38;  // not NaN
      bytes.push_back(static_cast<char>(byte));
      // 1.mmm * 2^(e - 7) or 0.mmm * 2^-6, written down without the loader's function.
      const int exponent = (byte >> 3) & 15;
      const float mantissa = static_cast<float>(byte & 7) / 8 + (exponent > 0 ? 1.0F : 0.0F);
      const float value = std::ldexp(mantissa, std::max(exponent, 1) - 7);
      values[row * columns + column] =
          (byte & 0x80U ? -value : value) *
          scales[static_cast<std::size_t>(row / 128 * scale_columns + column / 128)];
    }
  }
  file.add(name, "F8_E4M3", {rows, columns}, bytes);
  file.add_f32(name + "_scale_inv", {(rows + 127) / 128, scale_columns}, scales);
}

/// DeepSeek-V3 in FP8. Sets the experts' and the shared experts' values of `b`.
inline void write_deepseek_fp8(FileWriter& file, Block& b, const std::string& layer) {
  file.add_bf16(layer + "mlp.gate.weight", {b.e, b.h}, b.router);
  file.add_f32(layer + "mlp.gate.e_score_correction_bias", {b.e}, b.selection_bias);
  for (std::int64_t e = 0; e < b.e; ++e) {
    const std::string expert = layer + "mlp.experts." + std::to_string(e) + ".";
    const std::int64_t first = e * b.i * b.h;
    const auto seed = static_cast<std::uint64_t>(30 + 3 * e);
    write_fp8(file, expert + "gate_proj.weight", b.i, b.h, seed, b.gate.data() + first);
    write_fp8(file, expert + "up_proj.weight", b.i, b.h, seed + 1, b.up.data() + first);
    write_fp8(file, expert + "down_proj.weight", b.h, b.i, seed + 2, b.down.data() + first);
  }
  const std::string shared = layer + "mlp.shared_experts.";
  write_fp8(file, shared + "gate_proj.weight", b.s, b.h, 60, b.shared_gate.data());
  write_fp8(file, shared + "up_proj.weight", b.s, b.h, 61, b.shared_up.data());
  write_fp8(file, shared + "down_proj.weight", b.h, b.s, 62, b.shared_down.data());
}

}  // namespace moe::test
