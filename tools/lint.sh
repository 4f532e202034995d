#!/usr/bin/env bash
# clang-format and clang-tidy over our host code; any finding fails. Needs a configured build/cpu.
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

mapfile -t sources < <(find src include tests -name '*.cpp' -o -name '*.h' | sort)
clang-format --dry-run -Werror "${sources[@]}"

mapfile -t units < <(find src -name '*.cpp' | sort)
printf '%s\n' "${units[@]}" | xargs -P "$(nproc)" -n 2 \
  clang-tidy -p build/cpu --quiet --extra-arg=-Wno-unknown-warning-option 2>/dev/null
echo "lint: ${#sources[@]} files formatted, ${#units[@]} translation units clean"
