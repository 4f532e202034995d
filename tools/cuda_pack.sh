#!/usr/bin/env bash
# Builds the CUDA tests and timings, stripped, with what a GPU machine without network or packages needs
# to run them: tools/cuda_pack.sh [BUILD_DIR [PACK_DIR]]; there: PACK_DIR/run.sh test|sanitize|time
# The machine brings the driver and cuBLASLt of the same CUDA major version.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
build=${1:-$root/build/cuda}
pack=${2:-$root/build/cuda-pack}
cmake -S "$root" -B "$build" -DCMAKE_BUILD_TYPE=Release -DMOE_WITH_CUDA=ON -DMOE_WITH_ONEDNN=OFF \
  -DMOE_BUILD_CLI=OFF >/dev/null
cmake --build "$build" --target test_cuda cuda_timings
mkdir -p "$pack/lib"
install -s "$build/tests/test_cuda" "$build/cuda_timings" "$pack"
ldd "$build/tests/test_cuda" | awk '$1 ~ /^lib(fmt|gomp)\./ {print $3}' | xargs -r -I{} cp -L {} "$pack/lib"
install "$root/tools/cuda_run.sh" "$pack/run.sh"
du -sh "$pack"
