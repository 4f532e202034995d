#!/usr/bin/env bash
# Runs on the GPU machine, from the folder that tools/cuda_pack.sh made. Logs and results go to $OUT
# (default: here).
#   run.sh test       every test of tests/cuda, and the conformance tests on the GPU
#   run.sh bench ...  measure_gpu.sh ...: the benches whose results are committed, their JSON to $OUT
#   run.sh presets P...  moe verify --preset P: levels 8 and 9 on the models' own blocks at full size, 24 tokens, one
#                     after the other; log as in results/h200/verify_presets.log. No P: all that are no lab's
#   run.sh sanitize   compute-sanitizer: memcheck and racecheck on the routing kernels, on a forward of each
#                     level and on those of level 9 for one token, few and many
#   run.sh time ...   cuda_timings ..., its rows also in $OUT/cuda_timings.jsonl
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")" || exit
out=${OUT:-$PWD}
cublas=$(find /usr/local/cuda*/ /usr/lib /opt -name 'libcublasLt.so.13' -print -quit 2>/dev/null)
[ -n "$cublas" ] || { echo "libcublasLt.so.13 not found" >&2; exit 6; }
libraries=$(dirname "$cublas")
export LD_LIBRARY_PATH=$PWD/lib:$libraries:${LD_LIBRARY_PATH:-}
routing='CudaSoftmaxTopK.LowestIndexWinsTies:CudaSoftmaxTopK.SurvivesExtremeLogits:CudaPermute.SortsSkewedRows:CudaRouting.TiesAndSkew:CudaRouteFront.FewTokens'

streaming='CudaStreamRouter.NanStaysInItsToken:CudaStreamRouter.TiesGoToTheLowestExpert:CudaStreamToken.ManySlots:CudaStreamToken.NanIsNan:CudaStreamToken.TheSecondProductAwaitsChoicesThatAreNotThereYet:CudaStreamExperts.FewTokens:CudaStreamExperts.NanStaysInItsToken:CudaStreaming.NanStaysInItsToken:CudaStreamingBlocks.NanStaysInItsToken:CudaStreamingBlocks.SlotsThatNameNoExpertAreNotUsed'

sanitize() { # tool, gtest filter
  timeout 120 compute-sanitizer --error-exitcode 9 --tool "$1" ./test_cuda --gtest_brief=1 \
    --gtest_filter="$2" >"$out/$1.log" 2>&1
  local status=$?
  echo "$1: exit $status"; tail -n 4 "$out/$1.log"
  return $status
}

case ${1:-} in
  test)
    status=0
    for test in test_cuda test_conformance_cuda; do
      timeout 300 "./$test" --gtest_brief=1 2>&1 | tee "$out/$test.log" || status=$?
    done
    exit $status ;;
  bench) shift; MOE=$PWD/moe ./measure_gpu.sh "$out" "$@" ;;
  presets)
    shift
    names=("$@")
    [ $# -gt 0 ] || mapfile -t names < <(./moe presets list | awk 'NR > 1 && $1 !~ /^lab/ {print $1}')
    exec > >(tee -a "$out/verify_presets.log") 2>&1
    status=0
    for name in "${names[@]}"; do
      arguments=(--preset "$name" --axis tokens=24 --backend cuda -t moe_journey:8 -t moe_journey:9 --tune-seconds 0)
      echo "# moe verify ${arguments[*]}"
      ./moe verify "${arguments[@]}" -q
      code=$?
      echo "# exit $code"
      [ "$code" -eq 0 ] || status=$code
    done
    exit "$status" ;;
  sanitize)
    sanitize memcheck "$routing:$streaming:*off_tile_bf16:*several_chunks_bf16" &&
      sanitize racecheck "$routing:$streaming:*AgreeWithTheOracle/one_token_bf16" ;;
  time) shift; timeout 400 ./cuda_timings "$@" | tee "$out/cuda_timings.jsonl" ;;
  *) sed -n '2,11s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 2 ;;
esac
