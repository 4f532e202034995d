#!/usr/bin/env bash
# Tests of ./moe, the front door. Usage: run.sh SOURCE_DIR BINARY
set -euo pipefail
source_dir=$1
binary=$2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failures=0
check() { # description, condition...
  local what=$1
  shift
  if "$@"; then echo "ok: $what"; else echo "FAILED: $what"; failures=$((failures + 1)); fi
}

# A copy of the sources' skeleton whose build folder already holds the binary.
tree=$work/tree
mkdir -p "$tree/build/cpu" "$tree/src"
cp "$source_dir/moe" "$tree/moe"
cp "$source_dir/CMakeLists.txt" "$tree/"
ln -s "$binary" "$tree/build/cpu/moe"
touch "$tree/build/cpu/.moe-built"

# --- once built (here the CPU build): nothing but the command's own output, and little time
export MOE_CUDA=0
out=$("$tree/moe" --version 2>"$work/err")
check "stdout is the command's" [ "$out" = "$("$binary" --version)" ]
check "nothing is said once built" [ ! -s "$work/err" ]
milliseconds() { local start end; start=$(date +%s%N); "$@" >/dev/null 2>&1; end=$(date +%s%N); echo $(((end - start) / 1000000)); }
best=1000000
for _ in 1 2 3 4 5; do
  took=$(($(milliseconds "$tree/moe" --version) - $(milliseconds "$binary" --version)))
  [ "$took" -lt "$best" ] && best=$took
done
check "adds less than 200 ms once built (added $best ms)" [ "$best" -lt 200 ]
status=0
"$tree/moe" bench run -t no_such_target >/dev/null 2>&1 || status=$?
check "the command's exit code comes through (got $status)" [ "$status" -eq 2 ]

# --- which build: the command prints where it was built
for name in cpu cuda; do
  mkdir -p "$tree/build/$name"
  rm -f "$tree/build/$name/moe"
  printf '#!/bin/sh\necho %s\n' "$name" >"$tree/build/$name/moe"
  chmod +x "$tree/build/$name/moe"
  touch "$tree/build/$name/.moe-built"
done
unset MOE_CUDA
fakes=$work/fakes
mkdir "$fakes"
printf '#!/bin/sh\nexit 0\n' >"$fakes/nvcc"
cp "$fakes/nvcc" "$fakes/nvidia-smi"
chmod +x "$fakes/nvcc" "$fakes/nvidia-smi"
check "toolkit and driver: the CUDA build" [ "$(PATH=$fakes:$PATH "$tree/moe" list 2>/dev/null)" = cuda ]
check "MOE_CUDA=0: the CPU build" [ "$(PATH=$fakes:$PATH MOE_CUDA=0 "$tree/moe" list 2>/dev/null)" = cpu ]
printf '#!/bin/sh\nexit 9\n' >"$fakes/nvidia-smi"
if [ -e /dev/nvidiactl ] || [ -e /dev/dxg ]; then
  echo "skipped: what happens with a toolkit and no driver; this machine has a driver"
else
  check "toolkit without a driver: the CPU build" [ "$(PATH=$fakes:$PATH "$tree/moe" list 2>/dev/null)" = cpu ]
fi
check "MOE_CUDA=1: the CUDA build" [ "$(PATH=$fakes:$PATH MOE_CUDA=1 "$tree/moe" list 2>/dev/null)" = cuda ]
status=0
MOE_CUDA=yes "$tree/moe" list >/dev/null 2>"$work/err" || status=$?
check "another MOE_CUDA is exit 2 (got $status)" [ "$status" -eq 2 ]
check "and says what it can be" grep -q "can be 0, 1 or auto" "$work/err"
rm -f "$tree/build/cuda/moe" "$tree/build/cpu/moe"
ln -s "$binary" "$tree/build/cpu/moe"
export MOE_CUDA=0 # from here on, whatever this machine has

# --- missing packages, without the rights to install them
tools=$work/bin
mkdir "$tools"
for tool in bash env dirname readlink find id tr mkdir rm grep head tail mktemp flock nproc date cat; do
  path=$(command -v "$tool") && ln -s "$path" "$tools/$tool"
done
printf '#!/bin/sh\nexit 1\n' >"$tools/apt-get"
printf '#!/bin/sh\n[ "$1" = -u ] && echo 1000\n' >"$work/id"
rm "$tools/id" && mv "$work/id" "$tools/id"
chmod +x "$tools/apt-get" "$tools/id"
rm "$tree/build/cpu/.moe-built"
status=0
PATH=$tools "$tree/moe" --version >"$work/out" 2>"$work/err" || status=$?
check "exit 6 without the rights (got $status)" [ "$status" -eq 6 ]
check "stdout stays empty" [ ! -s "$work/out" ]
check "the exact command is printed" grep -q 'sudo apt-get update && sudo apt-get install -y --no-install-recommends g++ cmake ninja-build' "$work/err"

# --- with the rights, when the installation fails
printf '#!/bin/sh\n[ "$1" = -u ] && echo 0\n' >"$tools/id"
status=0
PATH=$tools "$tree/moe" --version >"$work/out" 2>"$work/err" || status=$?
check "a failed installation is exit 6 (got $status)" [ "$status" -eq 6 ]
check "and names its log" grep -q 'the whole output is in' "$work/err"

# --- a build that fails says where
printf '#!/bin/sh\necho "CMake Error: broken on purpose"; exit 1\n' >"$work/cmake"
chmod +x "$work/cmake"
status=0
PATH=$work:$PATH "$tree/moe" --version >"$work/out" 2>"$work/err" || status=$?
check "a failed configuration is exit 1 (got $status)" [ "$status" -eq 1 ]
check "and shows the error" grep -q 'broken on purpose' "$work/err"

exit $((failures > 0))
