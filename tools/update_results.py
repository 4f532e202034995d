#!/usr/bin/env python3
"""Rewrites the generated tables in README.md and docs/ from the committed result files.

A generated table stands between two marker lines:

    <!-- moe:results journey results/MACHINE/FILE.json -->
    ...
    <!-- /moe:results -->

Views:
    journey FILE           every row of one result file
    scale FILE             levels by tokens, from a file of -t moe_scale
    level NAME FOLDER      one level in every journey and sweep file of a folder, sorted by file name
    machine FILE           the machine and the ceilings of a file

Usage: update_results.py [--check]   (--check: change nothing, exit 1 when a table is stale)
"""

import json
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"(<!-- moe:results (.+?) -->\n)(.*?)(<!-- /moe:results -->)", re.DOTALL)


def load(path):
    with open(ROOT / path, encoding="utf-8") as file:
        return json.load(file)


def time_text(microseconds):
    if microseconds is None:
        return "–"
    for limit, unit, scale in ((1e3, "us", 1), (1e6, "ms", 1e3), (float("inf"), "s", 1e6)):
        if microseconds < limit:
            return f"{microseconds / scale:.3g} {unit}" if microseconds / scale < 100 else f"{microseconds / scale:.0f} {unit}"
    return "–"


def bytes_text(count):
    if count is None:
        return "–"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.3g} {unit}" if count < 100 else f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.3g} TiB" if count < 100 else f"{count:.0f} TiB"


def number(value, form, suffix=""):
    return "–" if value is None else format(value, form) + suffix


def percent(value):
    return "–" if value is None else f"{100 * value:.0f} %"


def table(header, rows):
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def gain(row):
    if row["gain_vs_previous"] is None:
        return "–"
    text = f"{row['gain_vs_previous']:.2f}x"
    return text if row["distinguishable"] else text + " (not distinguishable)"


def measured(row):
    """The cells of one row from the median on; a row without a time says why instead."""
    if row["status"] != "ok":
        needed = f", needs {bytes_text(row['bytes_needed'])}" if row["status"] == "out_of_memory" else ""
        return [f"{row['status'].replace('_', ' ')}{needed}"] + ["–"] * 6
    return [time_text(row["median_us"]), number(row["speedup_vs_first"], ".1f", "x"), gain(row),
            percent(row["ceiling_fraction"]), bytes_text(row["peak_bytes"]), f"{row['error']:.1e}",
            percent(row["tolerance_used"])]


MEASURED = ["median", "over naive", "over the level before", "of the ceiling", "memory", "error", "of the tolerance"]


def shape_text(row):
    return (f"T={row['tokens']} H={row['hidden']} I={row['intermediate']} E={row['experts']} "
            f"K={row['top_k']} {row['dtype']}" + ("" if row["skew"] == "uniform" else f" {row['skew']}"))


def journey(path):
    result = load(path)
    rows = [[row["level"], f"`{row['name']}`"] + measured(row) for row in result["rows"]]
    return f"{shape_text(result['rows'][0])} ([{path}](/{path}))\n\n" + table(["level", "name"] + MEASURED, rows)


def scale(path):
    result = load(path)
    names = list(dict.fromkeys(row["name"] for row in result["rows"]))
    cells = {(row["tokens"], row["name"]): row for row in result["rows"]}
    rows = [[tokens] + [measured(cells[tokens, name])[0] if (tokens, name) in cells else "–" for name in names]
            for tokens in sorted({row["tokens"] for row in result["rows"]})]
    first = result["rows"][0]
    title = f"H={first['hidden']} I={first['intermediate']} E={first['experts']} K={first['top_k']} {first['dtype']}"
    return f"{title} ([{path}](/{path}))\n\n" + table(["tokens"] + [f"`{name}`" for name in names], rows)


def level(name, folder):
    rows = []
    for path in sorted([*(ROOT / folder).glob("journey_*.json"), *(ROOT / folder).glob("sweep_*.json")]):
        relative = path.relative_to(ROOT).as_posix()
        for row in load(relative)["rows"]:
            if row["name"] == name:
                rows.append([f"[{shape_text(row)}](/{relative})"] + measured(row))
    return table(["shape"] + MEASURED, rows)


def machine(path):
    result = load(path)
    about = {**result["machine"], **result["ceilings"]}
    return table(["what", "value"], [[key, about[key]] for key in about if not isinstance(about[key], (dict, list))])


VIEWS = {"journey": journey, "scale": scale, "level": level, "machine": machine}


def rewrite(text):
    def block(match):
        view, *arguments = match.group(2).split()
        return match.group(1) + VIEWS[view](*arguments) + match.group(4)

    return BLOCK.sub(block, text)


def main():
    check = sys.argv[1:] == ["--check"]
    if sys.argv[1:] and not check:
        sys.exit(__doc__)
    stale = []
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        old = path.read_text(encoding="utf-8")
        new = rewrite(old)
        if new != old:
            stale.append(path.relative_to(ROOT).as_posix())
            if not check:
                path.write_text(new, encoding="utf-8")
    if check and stale:
        sys.exit("stale generated tables in " + ", ".join(stale) + "; run tools/update_results.py")
    print(f"{'checked' if check else 'rewrote'}: {', '.join(stale) if stale else 'nothing to change'}")


if __name__ == "__main__":
    main()
