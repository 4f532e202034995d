#!/usr/bin/env bash
# Builds preset cpu-asan (AddressSanitizer and UndefinedBehaviorSanitizer) and runs the tests in it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
build=build/cpu-asan
generator=()
command -v ninja >/dev/null && generator=(-G Ninja)
cmake --preset cpu-asan "${generator[@]}" >/dev/null
cmake --build "$build" --parallel "$(nproc)" >"$build/build.log" 2>&1 || { tail -n 30 "$build/build.log"; exit 1; }
export UBSAN_OPTIONS=print_stacktrace=1
cd "$build"
# Tests labelled slow take gigabytes or minutes; the sanitizers multiply both.
ctest --output-on-failure --no-tests=error -LE slow "$@"
