// The blocks of real models that levels are tested with.
#pragma once

namespace moe {

/// A name for a test and the options of the command line.
struct Block {
  const char* name;
  const char* options;
};

inline constexpr Block kBlocks[] = {
    {"expert_bias", "--expert-bias"},
    {"renormalised_with_bias", "--router softmax,bias"},
    {"softmax_raw", "--router softmax,raw,scale=1.5"},
    {"router_v2", "--router softmax,raw,groups=4/2,scale=16"},
    {"router_v3", "--router sigmoid,selection-bias,groups=4/2,scale=2.5"},
    {"router_v4", "--router sqrtsoftplus,selection-bias,scale=1.5"},
    {"deepseek_v2", "--router softmax,raw,groups=4/2,scale=16 --shared 80"},
    {"deepseek_v3", "--router sigmoid,selection-bias,groups=4/2,scale=2.5 --shared 40"},
    {"deepseek_v4",
     "--router sqrtsoftplus,selection-bias,scale=1.5 --activation swiglu,limit=1.5 --shared 40"},
    {"llama4", "--router sigmoid,raw,on-input --shared 40"},
    {"gpt_oss", "--router softmax,bias --activation swiglu,alpha=1.702,limit=2,up=1 --expert-bias"},
    {"sparsemixer", "--router sparsemixer"},
    {"qwen_next", "--shared 100,switch"},
    {"nemotron",
     "--router sigmoid,selection-bias,scale=2.5 --activation relu2 --shared 56 --expert-bias"},
    {"gemma", "--activation geglu --shared 24"},
    {"geglu_on_input", "--router softmax,on-input --activation geglu --expert-bias"},
    {"given", "--router given --shared 40 --expert-bias"},
};

}  // namespace moe
