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

# --- once built: nothing but the command's own output, and little time
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
