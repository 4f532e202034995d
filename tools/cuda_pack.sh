#!/usr/bin/env bash
# Builds moe, the CUDA tests and timings, stripped, with what a GPU machine without network or packages needs
# to run them: tools/cuda_pack.sh [BUILD_DIR [PACK_DIR]]; there: PACK_DIR/run.sh test|bench|sanitize|time
# The machine brings the driver and cuBLASLt of the same CUDA major version.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
build=${1:-$root/build/cuda}
pack=${2:-$root/build/cuda-pack}
cmake -S "$root" -B "$build" -DCMAKE_BUILD_TYPE=Release -DMOE_WITH_CUDA=ON -DMOE_WITH_ONEDNN=OFF >/dev/null
cmake --build "$build" --target moe_main test_cuda test_conformance_cuda cuda_timings --parallel "$(nproc)"
mkdir -p "$pack/lib"
programs=("$build/moe" "$build/tests/test_cuda" "$build/tests/test_conformance_cuda" "$build/cuda_timings")
install -s "${programs[@]}" "$pack"
ldd "${programs[@]}" | awk '$1 ~ /^lib(fmt|gomp)\./ {print $3}' | sort -u | xargs -r -I{} cp -L {} "$pack/lib"
# Result files name the commit, which git does not tell there (src/cli/provenance.h).
commit=$(git -C "$root" rev-parse HEAD)
[ -z "$(git -C "$root" status --porcelain --untracked-files=no)" ] || commit+=" modified"
echo "$commit" >"$pack/moe.commit"
install "$root/tools/cuda_run.sh" "$pack/run.sh"
install "$root/tools/measure_gpu.sh" "$pack"
du -sh "$pack"
