#!/usr/bin/env python3
"""Writes src/cuda/device/wgmma_bf16.cuh: the wgmma instructions for bf16, one function a width.

    tools/gen_wgmma.py            writes the file
    tools/gen_wgmma.py --check    exits 1 when the file is not what this program writes

An instruction has 4 to 128 accumulators, each an operand of its own, which no template can spell.
"""
import pathlib
import sys

WIDTHS = [8] + list(range(16, 257, 16))
TARGET = pathlib.Path(__file__).resolve().parent.parent / "src/cuda/device/wgmma_bf16.cuh"

HEAD = """// Written by tools/gen_wgmma.py. Change that, not this.
// wgmma.mma_async m64nNk16, bf16 times bf16 into fp32, both operands K-major in shared memory:
// d[64,N] (+)= a[64,16] * b[N,16]^T. PTX ISA, wgmma.mma_async. In thread t of the warpgroup, for every
// group j of 8 columns: d[4j], d[4j+1] are row 16*(t/32) + t%32/4, columns 8j + 2*(t%4) and the next;
// d[4j+2], d[4j+3] the same columns eight rows below.
#pragma once

#include <cstdint>

namespace moe::cuda {

template <int kColumns>
struct WgmmaBf16;
"""

BODY = """
template <>
struct WgmmaBf16<{n}> {{
  /// d += a * b^T
  static __device__ __forceinline__ void accumulate(float (&d)[{count}], std::uint64_t a,
                                                    std::uint64_t b) {{
    asm volatile(
        "{{\\n.reg .pred add;\\nsetp.eq.b32 add, 0, 0;\\n"
        "wgmma.mma_async.sync.aligned.m64n{n}k16.f32.bf16.bf16 "
        "{{{registers}}}, "
        "%{a}, %{b}, add, 1, 1, 0, 0;\\n}}\\n"
        : {in_out}
        : "l"(a), "l"(b));
  }}
  /// d = a * b^T. The accumulators are outputs only: they need not live before the first product.
  static __device__ __forceinline__ void start(float (&d)[{count}], std::uint64_t a,
                                               std::uint64_t b) {{
    asm volatile(
        "{{\\n.reg .pred add;\\nsetp.ne.b32 add, 0, 0;\\n"
        "wgmma.mma_async.sync.aligned.m64n{n}k16.f32.bf16.bf16 "
        "{{{registers}}}, "
        "%{a}, %{b}, add, 1, 1, 0, 0;\\n}}\\n"
        : {out}
        : "l"(a), "l"(b));
  }}
}};
"""


def generate() -> str:
    parts = ["// clang-format off\n", HEAD]
    for n in WIDTHS:
        count = n // 2
        parts.append(
            BODY.format(
                n=n,
                count=count,
                registers=", ".join(f"%{i}" for i in range(count)),
                a=count,
                b=count + 1,
                in_out=", ".join(f'"+f"(d[{i}])' for i in range(count)),
                out=", ".join(f'"=f"(d[{i}])' for i in range(count)),
            )
        )
    parts.append("\n}  // namespace moe::cuda\n// clang-format on\n")
    return "".join(parts)


if __name__ == "__main__":
    text = generate()
    if sys.argv[1:] == ["--check"]:
        if not TARGET.exists() or TARGET.read_text() != text:
            sys.exit(f"{TARGET} is not what {sys.argv[0]} writes; run it")
    else:
        TARGET.write_text(text)
