#!/usr/bin/env bash
# Writes docs/reports/DEVICE.html from the committed results of each device that has any of moe bench run (others only have
# those of programs in bench/); --check only compares.
# MOE is the program to run (default: ./moe, which builds it).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
moe=${MOE:-./moe}
status=0
for folder in results/*/; do
  device=$(basename "$folder")
  page=docs/reports/$device.html
  compgen -G "$folder*.json" >/dev/null || continue
  if [ "${1:-}" = --check ]; then
    made=$(mktemp)
    "$moe" report --html "$folder"*.json -o "$made"
    cmp -s "$made" "$page" || { echo "$page is not what the results in $folder give: run tools/reports.sh"; status=1; }
    rm -f "$made"
  else
    "$moe" report --html "$folder"*.json -o "$page"
  fi
done
exit $status
