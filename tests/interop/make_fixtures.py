#!/usr/bin/env python3
"""Tiny checkpoints of the transformers library, with the input and output of one MoE block each.

    make_fixtures.py --out FOLDER [--seed N]

For every family FOLDER gets NAME/ (what save_pretrained writes: config.json and safetensors) and
NAME.layerN.safetensors with x and y, both F32 [T,H]: the input and the output of the model's own MoE
block of layer N, computed in fp32 on the CPU. The committed ones are of seed 0; `./moe test --interop`
makes others.
"""
import argparse
import pathlib

import torch
import transformers
from safetensors.torch import save_file

TOKENS = 9
# Small, and no size a multiple of a tile: what is padded wrongly shows.
SIZES = dict(hidden_size=40, vocab_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
             max_position_embeddings=64, tie_word_embeddings=False)


def mixtral():
    config = transformers.MixtralConfig(**SIZES, intermediate_size=56, num_local_experts=5, num_experts_per_tok=2)
    return transformers.MixtralForCausalLM(config), 0, lambda layer: layer.block_sparse_moe


def qwen3_moe():
    # Layer 0 is dense, as mlp_only_layers has it.
    config = transformers.Qwen3MoeConfig(**SIZES, head_dim=16, intermediate_size=64, moe_intermediate_size=24,
                                         num_experts=8, num_experts_per_tok=3, norm_topk_prob=True,
                                         mlp_only_layers=[0])
    return transformers.Qwen3MoeForCausalLM(config), 1, lambda layer: layer.mlp


def olmoe():
    config = transformers.OlmoeConfig(**SIZES, intermediate_size=24, num_experts=8, num_experts_per_tok=4,
                                      norm_topk_prob=True)
    return transformers.OlmoeForCausalLM(config), 1, lambda layer: layer.mlp


def granitemoe():
    config = transformers.GraniteMoeConfig(**SIZES, intermediate_size=24, num_local_experts=6, num_experts_per_tok=3)
    return transformers.GraniteMoeForCausalLM(config), 0, lambda layer: layer.block_sparse_moe


def deepseek_v3():
    config = transformers.DeepseekV3Config(**SIZES, intermediate_size=64, moe_intermediate_size=24,
                                           n_routed_experts=8, n_shared_experts=1, num_experts_per_tok=3, n_group=4,
                                           topk_group=2, routed_scaling_factor=2.5, norm_topk_prob=True,
                                           first_k_dense_replace=1, q_lora_rank=8, kv_lora_rank=8,
                                           qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8)
    return transformers.DeepseekV3ForCausalLM(config), 1, lambda layer: layer.mlp


def glm4_moe():
    config = transformers.Glm4MoeConfig(**SIZES, head_dim=16, intermediate_size=64, moe_intermediate_size=24,
                                        n_routed_experts=8, n_shared_experts=1, num_experts_per_tok=3,
                                        routed_scaling_factor=1.5, norm_topk_prob=True, first_k_dense_replace=1)
    return transformers.Glm4MoeForCausalLM(config), 1, lambda layer: layer.mlp


def gpt_oss():
    config = transformers.GptOssConfig(**SIZES, head_dim=16, intermediate_size=24, num_local_experts=4,
                                       num_experts_per_tok=2)
    return transformers.GptOssForCausalLM(config), 0, lambda layer: layer.mlp


def llama4():
    config = transformers.Llama4TextConfig(**SIZES, head_dim=16, intermediate_size=24, intermediate_size_mlp=48,
                                           num_local_experts=4, num_experts_per_tok=1, interleave_moe_layer_step=1)
    return transformers.Llama4ForCausalLM(config), 0, lambda layer: layer.feed_forward


# name: how it is made, the dtype on disk, the largest shard
FAMILIES = {
    "mixtral": (mixtral, torch.float32, "10MB"),
    "qwen3_moe": (qwen3_moe, torch.bfloat16, "30KB"),  # several shards with an index
    "olmoe": (olmoe, torch.bfloat16, "10MB"),
    "granitemoe": (granitemoe, torch.bfloat16, "10MB"),
    "deepseek_v3": (deepseek_v3, torch.bfloat16, "10MB"),
    "glm4_moe": (glm4_moe, torch.bfloat16, "10MB"),
    "gpt_oss": (gpt_oss, torch.bfloat16, "10MB"),
    "llama4": (llama4, torch.bfloat16, "10MB"),
}


def randomise(model):
    """Biases too, which a new model has at zero."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2)
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.normal_(0, 0.1)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name, (make, dtype, shard) in FAMILIES.items():
        torch.manual_seed(options.seed)
        model, layer, block_of = make()
        randomise(model)
        # The stored values are the model's: rounded first, then computed in fp32.
        model = model.to(dtype)
        model.save_pretrained(options.out / name, max_shard_size=shard)
        (options.out / name / "generation_config.json").unlink(missing_ok=True)  # not of the layer
        model = model.float().eval()
        x = torch.randn(TOKENS, SIZES["hidden_size"])
        with torch.no_grad():
            out = block_of(model.model.layers[layer])(x.unsqueeze(0))
        y = out[0] if isinstance(out, tuple) else out  # some return their router's logits, too
        file = options.out / f"{name}.layer{layer}.safetensors"
        save_file({"x": x.contiguous(), "y": y.reshape(TOKENS, -1).contiguous()}, file)
        print(f"{name}: layer {layer}, |y| = {y.norm():.4f}, transformers {transformers.__version__}")


if __name__ == "__main__":
    main()
