#!/usr/bin/env bash
# Measures what the CUDA tables of README.md and docs/ show, on a GPU that is otherwise idle, and writes JSON
# files to FOLDER: measure_gpu.sh FOLDER [NAME...]   (no NAME: every bench, the most important ones first)
# Commit the files as results/DEVICE/*.json, then run tools/update_results.py and tools/reports.sh. Every bench has a time limit;
# no bench starts when more than MOE_BUDGET seconds (default 420) are over. MOE is the program to run.
set -uo pipefail
[ $# -ge 1 ] || { sed -n '2,5p' "$0" >&2; exit 2; }
moe=${MOE:-$(dirname "${BASH_SOURCE[0]}")/../moe}
budget=${MOE_BUDGET:-420}
folder=$1
shift
wanted=" $* "
mkdir -p "$folder/tune"
failed=0

bench() { # name, limit in seconds, arguments...
  local name=$1 limit=$2 began=$SECONDS status=0
  shift 2
  [ "$wanted" = "  " ] || [[ $wanted == *" $name "* ]] || return 0
  if [ "$SECONDS" -gt "$budget" ]; then
    echo "$name: not measured, $SECONDS s are over"
    failed=1
    return
  fi
  # A partial result would replace a whole one: the file gets its name when the run was complete.
  timeout --signal=INT --kill-after=10 "$limit" "$moe" bench run "$@" --backend cuda --dtype bf16 \
    --format json --output "$folder/$name.part" -q || status=$?
  if [ "$status" -eq 0 ] && [ -s "$folder/$name.part" ]; then
    mv "$folder/$name.part" "$folder/$name.json"
  else
    failed=1
  fi
  echo "$name: exit $status, $((SECONDS - began)) s"
}

tuned() { # name, limit in seconds, arguments...
  local name=$1 limit=$2 began=$SECONDS status=0
  shift 2
  [ "$wanted" = "  " ] || [[ $wanted == *" tune/$name "* ]] || return 0
  if [ "$SECONDS" -gt "$budget" ]; then
    echo "tune/$name: not measured, $SECONDS s are over"
    failed=1
    return
  fi
  timeout --signal=INT --kill-after=10 "$limit" "$moe" tune "$@" --backend cuda --dtype bf16 --repeat-check \
    --tune-cache off --format json --output "$folder/tune/$name.json" -q || { status=$? failed=1; }
  echo "tune/$name: exit $status, $((SECONDS - began)) s"
}

# Presets are run as their sizes with softmax routing and SwiGLU (--plain): all levels then compute the same block.

# The ladder from level 3 on, for shapes at which the levels before take long and teach nothing new.
targets=$("$moe" bench list-targets)
upper=()
for level in memefficient grouped graphs compiled grouped_gemm persistent; do
  grep -q "^moe_journey:$level " <<<"$targets" && upper+=(-t "moe_journey:$level")
done
# The whole ladder of a model at its own 64 tokens and, as far as levels finish in 6 s, at the targets' numbers of them.
whole=(-t moe_journey --timeout 6 --tune-seconds 3 --axis tokens=64,4096,16384)
small=(--axis "tokens=1,2,4,8,16,32,64,128,256")

# The journey as the README shows it, the shapes of the targets, and where its time goes.
bench journey_lab_T8192_bf16 60 -t moe_journey --preset lab --axis tokens=8192
bench journey_mixtral-8x7b_bf16 90 "${whole[@]}" --preset mixtral-8x7b --plain
bench journey_qwen3-30b-a3b_bf16 60 "${whole[@]}" --preset qwen3-30b-a3b --plain
bench kernels_lab_T8192_bf16 60 -t moe_journey --preset lab --axis tokens=8192 --profile kernels
# What scale hides and shows.
bench scale_lab_bf16 240 -t moe_scale --preset lab
# Few tokens, where launches count.
bench sweep_lab_bf16 40 "${upper[@]}" --preset lab "${small[@]}"
bench sweep_qwen3-30b-a3b_bf16 40 "${upper[@]}" --preset qwen3-30b-a3b "${small[@]}"
bench launches_lab_bf16 40 "${upper[@]}" --preset lab --axis "tokens=1,8,64,256,8192" --launch both
# A model that decodes: one recorded graph a forward; and what skewed routing costs there.
for preset in qwen3-30b-a3b olmoe-1b-7b mixtral-8x7b gpt-oss-120b deepseek-v3; do
  bench "decode_${preset}_bf16" 90 -t moe_decode --preset "$preset" --plain
done
for skew in zipf:1 one-expert; do
  bench "decode_qwen3-30b-a3b_${skew/:/}_bf16" 40 -t moe_decode --preset qwen3-30b-a3b --axis "tokens=4,16,64" \
    --skew "$skew"
done
bench decode_qwen3-30b-a3b_dirty_bf16 40 -t moe_decode --preset qwen3-30b-a3b --cache dirty
# What does not help.
if grep -q "^moe_myths" <<<"$targets"; then
  bench myths_lab_bf16 60 -t moe_myths
fi
# More models.
bench journey_lab_bf16 60 -t moe_journey --preset lab --axis tokens=4096,16384
bench journey_gpt-oss-120b_bf16 90 "${whole[@]}" --preset gpt-oss-120b --plain
bench journey_olmoe-1b-7b_bf16 60 "${whole[@]}" --preset olmoe-1b-7b --plain
bench journey_deepseek-v3_bf16 200 "${whole[@]}" --preset deepseek-v3 --plain
# What tuning is worth; skewed routing is bench/skew_cost.cu's.
for preset in qwen3-30b-a3b olmoe-1b-7b lab; do
  tuned "${preset}_uniform" 180 --preset "$preset" --plain --axis tokens=64,512,4096,16384
done
exit $failed
