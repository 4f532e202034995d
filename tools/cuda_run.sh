#!/usr/bin/env bash
# Runs on the GPU machine, from the folder that tools/cuda_pack.sh made. Logs and results go to $OUT
# (default: here).
#   run.sh test       every test of tests/cuda
#   run.sh sanitize   compute-sanitizer: memcheck on the routing kernels and on a forward of each level,
#                     racecheck on the routing kernels
#   run.sh time ...   cuda_timings ..., its rows also in $OUT/cuda_timings.jsonl
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
out=${OUT:-$PWD}
cublas=$(find /usr/local/cuda*/ /usr/lib /opt -name 'libcublasLt.so.13' -print -quit 2>/dev/null)
[ -n "$cublas" ] || { echo "libcublasLt.so.13 not found" >&2; exit 6; }
export LD_LIBRARY_PATH=$PWD/lib:$(dirname "$cublas"):${LD_LIBRARY_PATH:-}
routing='CudaSoftmaxTopK.LowestIndexWinsTies:CudaSoftmaxTopK.SurvivesExtremeLogits:CudaPermute.SortsSkewedRows'

sanitize() { # tool, gtest filter
  timeout 120 compute-sanitizer --error-exitcode 9 --tool "$1" ./test_cuda --gtest_brief=1 \
    --gtest_filter="$2" >"$out/$1.log" 2>&1
  local status=$?
  echo "$1: exit $status"; tail -n 4 "$out/$1.log"
  return $status
}

case ${1:-} in
  test) timeout 300 ./test_cuda --gtest_brief=1 2>&1 | tee "$out/test_cuda.log" ;;
  sanitize)
    sanitize memcheck "$routing:*off_tile_bf16:*several_chunks_bf16" && sanitize racecheck "$routing" ;;
  time) shift; timeout 400 ./cuda_timings "$@" | tee "$out/cuda_timings.jsonl" ;;
  *) sed -n '2,8s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 2 ;;
esac
