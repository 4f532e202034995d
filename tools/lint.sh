#!/usr/bin/env bash
# clang-format over our C++ and CUDA sources, clang-tidy over the host code; any finding fails. Needs a
# configured build/cpu or build/cuda; where both are, files of src/cuda are read as in the latter.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

missing=()
for tool in clang-format clang-tidy; do command -v "$tool" >/dev/null || missing+=("$tool"); done
# clang-tidy reads the OpenMP pragmas with clang's own omp.h.
[ -n "$(find /usr/lib/llvm-*/lib/clang /usr/lib/clang -name omp.h -print -quit 2>/dev/null)" ] || missing+=(libomp-dev)
if [ ${#missing[@]} -gt 0 ]; then
  [ "$(id -u)" -eq 0 ] || { echo "missing: ${missing[*]}" >&2; exit 1; }
  apt-get update -q >/dev/null && apt-get install -y -q --no-install-recommends "${missing[@]}" >/dev/null
fi

mapfile -t sources < <(find src include tests bench examples -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' | sort)
clang-format --dry-run -Werror "${sources[@]}"

tidy() { # build folder, files...
  local build=$1
  shift
  printf '%s\n' "$@" | xargs -P "$(nproc)" -n 2 \
    clang-tidy -p "$build" --quiet --extra-arg=-Wno-unknown-warning-option 2>/dev/null
}
mapfile -t units < <(find src -name '*.cpp' ! -path 'src/cuda/*' | sort)
cpu_build=build/cpu
[ -e build/cpu/compile_commands.json ] || cpu_build=build/cuda
cuda_build=build/cpu # which has what needs no toolkit
[ -e build/cuda/compile_commands.json ] && cuda_build=build/cuda
mapfile -t cuda_units < <(find src/cuda -name '*.cpp' | sort | while read -r unit; do
  if grep -qF "/$unit\"" "$cuda_build/compile_commands.json"; then echo "$unit"; fi
done)
tidy "$cpu_build" "${units[@]}"
tidy "$cuda_build" "${cuda_units[@]}"
units+=("${cuda_units[@]}")
echo "lint: ${#sources[@]} files formatted, ${#units[@]} translation units clean"
