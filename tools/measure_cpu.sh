#!/usr/bin/env bash
# Measures what the tables of README.md and docs/ show, on an otherwise idle machine, and writes
# results/FOLDER/*.json. About 20 minutes on two cores. Then run tools/update_results.py and tools/reports.sh.
# Usage: tools/measure_cpu.sh FOLDER   (e.g. cpu-zen4-2c)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ $# -eq 1 ] || { sed -n '2,4p' "$0" >&2; exit 2; }
folder=results/$1
mkdir -p "$folder"

best=(-t moe_journey:grouped -t moe_journey:graphs -t moe_journey:compiled)
bench() { # file, arguments...
  local file=$1
  shift
  echo "== $file" >&2
  ./moe bench run "$@" --format json --output "$folder/$file.json" -q
}

# The journey as the README shows it, and at the sizes of the targets.
bench journey_lab_T256_fp32 -t moe_journey
no_gather=(-t moe_journey:naive -t moe_journey:memefficient "${best[@]}")
bench journey_lab_T512_fp32 "${no_gather[@]}" --axis tokens=512
bench journey_lab_T512_bf16 "${no_gather[@]}" --axis tokens=512 --dtype bf16
bench journey_qwen3-30b-a3b_T64_bf16 -t moe_journey --preset qwen3-30b-a3b --axis tokens=64 --dtype bf16
bench journey_qwen3-30b-a3b_T512_bf16 "${best[@]}" --preset qwen3-30b-a3b --axis tokens=512 --dtype bf16

# Small T: where a recorded plan matters.
bench journey_granite-3-1b_small_bf16 "${best[@]}" --preset granite-3-1b-a400m --axis tokens=1,2,4,8,16 --dtype bf16

# Skewed routing.
for skew in zipf:1 one-expert; do
  name=${skew/:/}
  bench "journey_lab_T512_fp32_$name" "${best[@]}" --axis tokens=512 --skew "$skew"
  bench "journey_lab_T512_bf16_$name" "${best[@]}" --axis tokens=512 --dtype bf16 --skew "$skew"
  bench "journey_qwen3-30b-a3b_T512_bf16_$name" "${best[@]}" --preset qwen3-30b-a3b --axis tokens=512 \
    --dtype bf16 --skew "$skew"
done

# A lower instruction set; and tokens from decode to prefill on two shapes and both dtypes.
bench journey_lab_T512_fp32_avx2 -t moe_journey:grouped -t moe_journey:compiled --axis tokens=512 --isa avx2
for dtype in bf16 fp32; do
  for preset in lab qwen3-30b-a3b; do
    bench "sweep_${preset}_$dtype" -t moe_journey:compiled --preset "$preset" --axis tokens=1,4,16,64,256,2048 \
      --dtype "$dtype"
  done
done

# The scale table: where the gather runs out of memory.
bench scale_lab_fp32 -t moe_scale
