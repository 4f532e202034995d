#!/usr/bin/env bash
# tools/nvcc_guard.sh fails where ptxas serialises wgmma, and nowhere else. Usage: run.sh GUARD NVCC
set -uo pipefail
guard=$1
nvcc=$2
source=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/wgmma.cu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
compile=("$nvcc" -std=c++20 -gencode "arch=compute_90a,code=sm_90a" -c "$source" -o "$work/wgmma.o")
failures=0
check() { # description, condition...
  local what=$1
  shift
  if "$@"; then echo "ok: $what"; else echo "FAILED: $what"; failures=$((failures + 1)); fi
}

"$guard" "${compile[@]}" 2>"$work/err"
check "wgmma in flight together pass" [ $? -eq 0 ]
check "and leave their object" [ -s "$work/wgmma.o" ]
rm -f "$work/wgmma.o"

"${compile[@]}" -DSERIALISED 2>"$work/err"
check "nvcc alone accepts the serialised ones" [ $? -eq 0 ]
rm -f "$work/wgmma.o"
"$guard" "${compile[@]}" -DSERIALISED 2>"$work/err"
check "the guard does not" [ $? -eq 1 ]
check "and shows what ptxas said" grep -q 'wgmma.mma_async instructions are serialized' "$work/err"
check "and leaves no object" [ ! -e "$work/wgmma.o" ]

"$guard" "${compile[@]}" --no-such-option 2>"$work/err"
check "an error of nvcc comes through" [ $? -gt 0 ]
check "with its message" grep -q 'no-such-option' "$work/err"
"$guard" sh -c 'exit 7'
check "and its exit code" [ $? -eq 7 ]
exit $((failures > 0))
