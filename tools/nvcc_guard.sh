#!/usr/bin/env bash
# Runs a compiler and fails where ptxas says that it gave a loop of wgmma instructions away ("Potential
# Performance Loss: wgmma.mma_async instructions are serialized", C7510 and C7511). ptxas calls that
# information, so that no option makes it an error, and the kernel runs several times slower.
#   nvcc_guard.sh COMPILER ARGS...        CMake calls it as the launcher of nvcc
set -uo pipefail
messages=$(mktemp)
trap 'rm -f "$messages"' EXIT
"$@" 2>"$messages"
status=$?
cat "$messages" >&2
[ "$status" -eq 0 ] || exit "$status"
grep -q 'Potential Performance Loss' "$messages" || exit 0
echo "error: ptxas serialises wgmma (see above); tools/nvcc_guard.sh makes that an error" >&2
while [ $# -gt 1 ]; do # without its output, the build tool cannot take the file for built
  [ "$1" = -o ] && rm -f "$2"
  shift
done
exit 1
