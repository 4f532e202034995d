#!/usr/bin/env python3
"""Rewrites the generated tables in README.md and docs/ from the committed result files.

A generated table stands between two marker lines:

    <!-- moe:results journey results/MACHINE/FILE.json -->
    ...
    <!-- /moe:results -->

Views:
    journey FILE [TOKENS]  every row of one result file, or those of one token count
    scale FILE             levels by tokens, from a file of -t moe_scale
    gains FILE             of the same: each level's gain over the one before at 2048 and at 8192 tokens, and why
    launches FILE          each level launched kernel by kernel and as a graph, from a file of --launch both
    twins FOLDER [PREFIX]  shapes by levels: the share of the dense twin, from the journey files of a folder, or
                           those of another PREFIX
    kernels FILE NAME      the kernels of one level, from a file of --profile kernels
    level NAME FOLDER      one level in every journey, sweep and decode file of a folder, sorted by file name
    myths FILE             the verdicts of -t moe_myths
    tune FOLDER            what tuning is worth, from the files of moe tune in a folder
    blocks FILE            what the blocks of real models cost beside the plain layer, from cpu_blocks
    routers FOLDER...      the CPU's routers by time and over the default one, from cpu_routers on several machines
    cuda_routers FILE      routers on a GPU, from cuda_timings routers
    block_cost FILE        what the blocks of real models cost level 8 on a GPU, from block_cost
    skew_cost FILE         what skewed routing costs level 8, from skew_cost
    stream_blocks FILE ONE_TOKEN_FILE
                           what the blocks of real models cost level 9, from stream_parts
    machine FILE           the machine and the ceilings of a file

A single figure stands within a sentence:

    <!-- moe:figure FILE NAME TOKENS FIELD FORM -->...<!-- /moe:figure -->

with a level's NAME, TOKENS or "-" for the only count, a FIELD of its row (or "over:OTHER", the ratio of OTHER's
median to its own; or "rate:BYTES", these bytes over the median) and a FORM: time (of a field in us), ms, percent,
factor, bytes, tbs (of GB/s), tflops (of GFLOP/s), count or text. With "- -" for NAME and TOKENS the FIELD is one of
the file, as in ceilings.read_gbs. What has no result file yet says so.

Usage: update_results.py [--check]   (--check: change nothing, exit 1 when a table is stale)
"""

import json
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"(<!-- moe:results (.+?) -->\n)(.*?)(<!-- /moe:results -->)", re.DOTALL)
FIGURE = re.compile(r"(<!-- moe:figure (.+?) -->)(.*?)(<!-- /moe:figure -->)", re.DOTALL)
REASON = re.compile(r"\n## What scale shows\n(.+?)\n\n", re.DOTALL)


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
            share(row), bytes_text(row["peak_bytes"]), f"{row['error']:.1e}", percent(row["tolerance_used"])]


def has_twin(rows):
    return any(row.get("twin_fraction") is not None for row in rows)


def share(row):
    """Of the dense twin where there is one, else of the ceiling."""
    twin = row.get("twin_fraction")
    return percent(row["ceiling_fraction"] if twin is None else twin)


def measured_header(rows):
    of = "of the dense twin" if has_twin(rows) else "of the ceiling"
    return ["median", "over naive", "over the level before", of, "memory", "error", "of the tolerance"]


def shape_text(row):
    return (f"T={row['tokens']} H={row['hidden']} I={row['intermediate']} E={row['experts']} "
            f"K={row['top_k']} {row['dtype']}" + ("" if row["skew"] == "uniform" else f" {row['skew']}") +
            (" dirty caches" if row.get("cache") == "dirty" else ""))


def journey(path, tokens="-"):
    rows = [row for row in load(path)["rows"] if tokens in ("-", str(row["tokens"]))]
    if not rows:
        sys.exit(f"{path} has no row at tokens={tokens}")
    lines = [[row["level"], f"`{row['name']}`"] + measured(row) for row in rows]
    header = ["level", "name"] + measured_header(rows)
    return f"{shape_text(rows[0])}{conditions(rows)} ([{path}](/{path}))\n\n" + table(header, lines)


def twins(folder, prefix="journey"):
    names = []
    lines = []
    for path in sorted((ROOT / folder).glob(f"{prefix}_*.json")):
        relative = path.relative_to(ROOT).as_posix()
        rows = [row for row in load(relative)["rows"] if row["skew"] == "uniform" and row.get("twin_fraction")]
        for tokens in sorted({row["tokens"] for row in rows}):
            cells = {row["name"]: percent(row["twin_fraction"]) if row["status"] == "ok" else row["status"]
                     for row in rows if row["tokens"] == tokens}
            names += [name for name in cells if name not in names]
            first = next(row for row in rows if row["tokens"] == tokens)
            preset = load(relative)["run"]["preset"]
            lines.append(([f"[{preset or ''} {shape_text(first)}](/{relative})", time_text(1e3 * first["twin_ms"])], cells))
    return table(["shape", "twin"] + [f"`{name}`" for name in names],
                 [head + [cells.get(name, "–") for name in names] for head, cells in lines])


def conditions(rows):
    """What all measured rows have in common of cache and launch, where the file says it."""
    parts = []
    for field, word in (("cache", "caches"), ("launch", "launches")):
        values = {row.get(field) for row in rows if row["samples"] > 0}
        if len(values) == 1 and None not in values and rows[0]["backend"] == "cuda":
            parts.append(f"{values.pop()} {word}")
    return ", " + ", ".join(parts) if parts else ""


def scale(path):
    result = load(path)
    names = list(dict.fromkeys(row["name"] for row in result["rows"]))
    cells = {(row["tokens"], row["name"]): row for row in result["rows"]}
    rows = [[tokens] + [measured(cells[tokens, name])[0] if (tokens, name) in cells else "–" for name in names]
            for tokens in sorted({row["tokens"] for row in result["rows"]})]
    first = result["rows"][0]
    title = f"H={first['hidden']} I={first['intermediate']} E={first['experts']} K={first['top_k']} {first['dtype']}"
    return f"{title} ([{path}](/{path}))\n\n" + table(["tokens"] + [f"`{name}`" for name in names], rows)


def launches(path):
    result = load(path)
    medians = {(row["tokens"], row["name"], row["launch"]): row["median_us"] for row in result["rows"] if row["status"] == "ok"}
    lines = []
    for tokens, name in dict.fromkeys((row["tokens"], row["name"]) for row in result["rows"]):
        eager, graph = medians.get((tokens, name, "eager")), medians.get((tokens, name, "graph"))
        ratio = eager / graph if eager and graph else None
        lines.append([tokens, f"`{name}`", time_text(eager), time_text(graph), number(ratio, ".2f", "x")])
    return f"[{path}](/{path})\n\n" + table(["tokens", "level", "eager", "graph", "gain"], lines)


def decode(path):
    """Few tokens: medians, and what share of the stream floor they are: bytes of active weights over the read rate,
    and an empty kernel."""
    result = load(path)
    names = list(dict.fromkeys(row["name"] for row in result["rows"]))
    lines = []
    for tokens in sorted({row["tokens"] for row in result["rows"]}):
        rows = {row["name"]: row for row in result["rows"] if row["tokens"] == tokens}
        first = next(iter(rows.values()))
        cells = [f"{time_text(rows[name]['median_us'])} ({percent(rows[name]['stream_fraction'])})"
                 if name in rows and rows[name]["status"] == "ok" else "–" for name in names]
        taken = rows.get("auto", {}).get("technique")
        if taken:
            cells.append(f"`{taken.removeprefix('takes ')}`")
        lines.append([tokens, first["active_experts"], time_text(first["stream_floor_us"])] + cells)
    first = result["rows"][0]
    title = f"H={first['hidden']} I={first['intermediate']} E={first['experts']} K={first['top_k']} {first['dtype']}"
    if first["skew"] != "uniform":
        title += f", skew {first['skew']}"
    return (f"{title}{conditions(result['rows'])} ([{path}](/{path}))\n\n" +
            table(["tokens", "active experts", "floor"] + [f"`{name}` (of the floor)" for name in names] +
                  (["`auto` takes"] if "auto" in names else []), lines))


def repeated(path, again):
    """Two runs of the same rows in one session."""
    second = {(row["tokens"], row["name"], row["launch"]): row for row in load(again)["rows"] if row["status"] == "ok"}
    lines = []
    for row in load(path)["rows"]:
        other = second.get((row["tokens"], row["name"], row["launch"]))
        if row["status"] == "ok" and other:
            lines.append([row["tokens"], f"`{row['name']}`", time_text(row["median_us"]), time_text(other["median_us"]),
                          number(100 * (other["median_us"] / row["median_us"] - 1), "+.1f", " %"),
                          number(100 * max(r["iqr_us"] / r["median_us"] for r in (row, other)), ".1f", " %")])
    return (f"[{path}](/{path}), [{again}](/{again})\n\n" +
            table(["tokens", "level", "one run", "the other", "change", "wider IQR of the two"], lines))


def scale_reason(symbol):
    page = ROOT / "docs" / "levels" / f"{symbol}.md"
    found = REASON.search(page.read_text(encoding="utf-8")) if page.exists() else None
    return " ".join(found.group(1).split()) if found else "–"


def level_symbols():
    text = (ROOT / "src" / "levels.def").read_text(encoding="utf-8")
    return {name: symbol for symbol, name in re.findall(r"^MOE_LEVEL\(\s*\d+,\s*(\w+),\s*\"(\w+)\"", text, re.M)}


def gains(path):
    result = load(path)
    counts = sorted({row["tokens"] for row in result["rows"]})
    few, many = (2048, 8192) if {2048, 8192} <= set(counts) else (counts[0], counts[-1])
    cells = {(row["tokens"], row["name"]): row for row in result["rows"]}

    def cell(row):
        if row is None or row["status"] != "ok":
            return "–" if row is None else row["status"].replace("_", " ")
        return gain(row) if row["previous"] is None else f"{gain(row)} over `{row['previous']}`"

    symbols = level_symbols()
    rows = [[f"`{name}`", cell(cells.get((few, name))), cell(cells.get((many, name))), scale_reason(symbols.get(name, ""))]
            for name in dict.fromkeys(row["name"] for row in result["rows"])]
    return f"[{path}](/{path})\n\n" + table(["level", f"at T={few}", f"at T={many}", "why"], rows)


def kernels(path, name):
    rows = [row for row in load(path)["rows"] if row["name"] == name and row.get("kernels")]
    text = ""
    for row in rows:
        profile = row["kernels"]
        busy = percent(profile["busy_us"] / profile["span_us"] if profile["span_us"] else None)
        text += (f"`{name}`, {shape_text(row)}: {profile['launches']:.4g} launches in {time_text(profile['span_us'])}, "
                 f"{busy} of them busy ([{path}](/{path}))\n\n")
        text += table(["kernel", "time", "share", "launches", "written"],
                      [[f"`{kernel['name']}`", time_text(kernel["time_us"]), percent(kernel["share"]),
                        f"{kernel['launches']:.4g}", bytes_text(kernel["bytes"])] for kernel in profile["by_name"]
                       if kernel["share"] >= 0.005])
    return text or f"no kernels of `{name}` in {path}\n"


def figure(path, name, tokens, field, form):
    result = load(path)
    rows = [row for row in result["rows"] if tokens in ("-", str(row["tokens"]))]
    row = next((row for row in rows if row["name"] == name), None)
    if name == "-":
        value = result
        for part in field.split("."):
            value = value[part]
    elif row is None:
        sys.exit(f"{path} has no row of {name} at tokens={tokens}")
    elif field.startswith("rate:"):
        value = float(field[5:]) / row["median_us"] / 1e3 if row["median_us"] else None
    elif field.startswith("over:"):
        other = next(other for other in rows if other["name"] == field[5:] and other["tokens"] == row["tokens"])
        value = other["median_us"] / row["median_us"] if other["median_us"] and row["median_us"] else None
    else:
        value = row[field]
    forms = {"time": time_text, "ms": lambda ms: time_text(None if ms is None else 1e3 * ms), "percent": percent,
             "factor": lambda ratio: number(ratio, ".2f" if ratio is not None and ratio < 10 else ".0f", "x"),
             "bytes": bytes_text, "tbs": lambda gbs: number(gbs and gbs / 1e3, ".2f", " TB/s"),
             "tflops": lambda gflops: number(gflops and gflops / 1e3, ".0f", " TFLOP/s"),
             "count": lambda count: number(count, ".0f"), "text": lambda text: "–" if text is None else str(text)}
    return forms[form](value)


def level(name, folder):
    rows = []
    seen = []
    kinds = ("journey", "sweep", "decode")
    for path in sorted(path for kind in kinds for path in (ROOT / folder).glob(f"{kind}_*.json")):
        relative = path.relative_to(ROOT).as_posix()
        for row in load(relative)["rows"]:
            if row["name"] == name:
                rows.append([f"[{shape_text(row)}](/{relative})"] + measured(row))
                seen.append(row)
    return table(["shape"] + measured_header(seen), rows) if rows else f"(not measured yet: {folder})\n"


def myths(path):
    def side(one, other):
        return f"`{one['name']}`" + (f" ({one['launch']})" if one["name"] == other["name"] else "")

    rows = []
    for found in load(path)["myths"]:
        sides = [found["claim"], f"{side(found['without'], found['with'])} → {side(found['with'], found['without'])}",
                 found["tokens"]]
        if found["gain"] is None:
            rows.append(sides + ["–"] * 4 + [found["verdict"], found["reason"]])
            continue
        sign = "" if found["distinguishable"] else "~"
        rows.append(sides + [time_text(found["without_us"]), time_text(found["with_us"]),
                             f"{sign}{found['gain']:.2f}x", f"{100 * found['noise']:.1f} %", found["verdict"],
                             found["cause"] or "–"])
    header = ["claim", "compared", "tokens", "without", "with", "gain", "noise", "the claim", "cause"]
    return f"[{path}](/{path})\n\n" + table(header, rows)


def blocks(path):
    with open(ROOT / path, encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    rows = [line for line in lines if "block" in line]
    names = list(dict.fromkeys(row["block"] for row in rows))
    cases = list(dict.fromkeys((row["shape"], row["dtype"]) for row in rows))

    def cell(name, case):
        for row in rows:
            if row["block"] == name and (row["shape"], row["dtype"]) == case:
                return f"{row['over_plain']:.3f} ({row['low']:.3f} to {row['high']:.3f})"
        return "–"

    header = ["block"] + [f"{shape.split()[0]} {dtype}" for shape, dtype in cases]
    options = {row["block"]: row["options"] for row in rows}
    body = [[f"{name}: `{options[name]}`" if options[name] else name] + [cell(name, case) for case in cases]
            for name in names]
    return f"[{path}](/{path}): {cases[0][0].split(' ', 1)[1]}, isa {rows[0]['isa']}, {rows[0]['threads']} thread\n\n" + \
        table(header, body)


def routers(*folders):
    found = {}
    for folder in folders:
        with open(ROOT / folder / "routers.jsonl", encoding="utf-8") as file:
            found[folder] = [row for row in map(json.loads, file) if "router" in row]
    first = found[folders[0]]
    header = ["router"] + [f"[{pathlib.Path(folder).name}](/{folder}/routers.jsonl) ({found[folder][0]['isa']})"
                           for folder in folders]
    body = [[f"`{row['router']}`"] + [f"{time_text(found[folder][i]['median_us'])}, {found[folder][i]['over_softmax']:.2f}x"
                                      for folder in folders] for i, row in enumerate(first)]
    return f"T={first[0]['tokens']} E={first[0]['experts']} K={first[0]['top_k']}, one thread\n\n" + table(header, body)


def cuda_routers(path):
    with open(ROOT / path, encoding="utf-8") as file:
        rows = [row for row in map(json.loads, file) if row.get("cache") == "cold"]
    first = rows[0]
    body = [[f"`{row['router']}`", time_text(row["choose_experts_us"]), time_text(row["route_rows_us"])] for row in rows]
    return (f"T={first['tokens']} E={first['experts']} K={first['top_k']}, [{path}](/{path})\n\n"
            + table(["router", "from logits to choices", "with the rows sorted"], body))


def json_files(folder, pattern="*.json"):
    return [path.relative_to(ROOT).as_posix() for path in sorted((ROOT / folder).glob(pattern))]


def tune(folder):
    rows = []
    for path in json_files(folder):
        result = load(path)
        name = f"[{result['preset'] or ''} {result['dtype']}, {result['skew']}](/{path})"
        for one in result["forwards"]:
            again = one["again_us"]
            apart = max(again, one["tuned_us"]) / min(again, one["tuned_us"]) - 1 if again else None
            rows.append([name, one["tokens"], time_text(one["untuned_us"]), time_text(one["tuned_us"]),
                         f"{one['gain']:.3f}x ({one['gain_low']:.3f} to {one['gain_high']:.3f})",
                         number(100 * apart if apart is not None else None, ".1f", " %"),
                         f"{result['prepare_tuned_s']:.1f} s ({result['prepare_untuned_s']:.1f} s)"])
    header = ["preset, routing", "tokens", "untuned", "tuned", "gain", "two tunings apart", "to prepare (untuned)"]
    return table(header, rows) if rows else f"(not measured yet: {folder})\n"


def json_lines(path):
    with open(ROOT / path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def percent_change(ratio, interval):
    low, high = (100 * (end - 1) for end in interval)
    return f"{100 * (ratio - 1):+.1f} % ({low:+.1f} to {high:+.1f})"


def block_cost(path):
    rows = [[row["shape"], row["problem"].split()[0][2:], f"`{row['block']}`", time_text(row["plain_us"]),
             time_text(row["block_us"]), percent_change(row["time_ratio"], row["time_ratio_95"]),
             f"{100 * (row['flops_ratio'] - 1):+.1f} %", f"{row['plain_tflops']:.0f}", f"{row['block_tflops']:.0f}"]
            for row in json_lines(path) if "block" in row and row["verified"]]
    header = ["sizes of", "tokens", "block", "without", "with", "time", "FLOPs", "TFLOP/s without", "with"]
    return f"[{path}](/{path})\n\n" + table(header, rows)


def skew_cost(path):
    rows = [[row["shape"], row["problem"].split()[0][2:], row["skew"], f"{row['busiest_over_mean']:.1f}",
             time_text(row["uniform_us"]), time_text(row["skewed_us"]), percent_change(row["ratio"], row["ratio_95"])]
            for row in json_lines(path) if "skewed_us" in row and row["verified"]]
    header = ["sizes of", "tokens", "routing", "busiest expert over the mean", "uniform", "skewed", "change"]
    return f"[{path}](/{path})\n\n" + table(header, rows)


def layer_shares(path):
    """Level 8 of every shape: its time, share of the twin, level 7's time over its own, round by round where they took turns."""
    of = {}
    for row in json_lines(path):
        tokens = int(row["problem"].split()[0][2:])
        of.setdefault(row["shape"], {})[row["level"], tokens] = row
    rows = []
    for shape, found in of.items():
        assert all(row["verified"] for row in found.values()), shape
        counts = sorted({tokens for _, tokens in found})
        cells = [shape, found["persistent", counts[0]]["problem"].split(" ", 1)[1]]
        for tokens in counts:
            mine, before = found["persistent", tokens], found["grouped_gemm", tokens]
            cells.append(f"{time_text(mine['median_us'])}, {percent(mine['twin_share'])}, "
                         f"{mine.get('over_previous', before['median_us'] / mine['median_us']):.2f}x")
        rows.append(cells)
    header = ["sizes of", "problem"] + [f"{tokens} tokens" for tokens in counts]
    return f"[{path}](/{path}): time of level 8, its share of the dense twin, level 7's time over it\n\n" + table(header, rows)


def stream_blocks(path, token_path):
    """Of one token the rows kept and those before, of more tokens the rows of `path`."""
    def mean(rows, field):
        return sum(row[field] for row in rows) / len(rows)

    def cell(rows):
        if not rows:
            return "–"
        return f"{mean(rows, 'all_us'):.1f} us ({percent(mean(rows, 'floor_us') / mean(rows, 'all_us'))})"

    one = [row for row in json_lines(token_path) if row.get("tokens") == 1]
    kept = [row for row in one if row["variant"].endswith("(kept)")]
    before = [row for row in one if row["variant"] == "before"]
    more = [row for row in json_lines(path) if row.get("tokens", 1) > 1 and "all_us" in row]
    lines = []
    for preset in dict.fromkeys(row["preset"].removesuffix("+block") for row in kept if row["preset"].endswith("+block")):
        for tokens in [1] + sorted({row["tokens"] for row in more}):
            def of(rows, name):
                return cell([row for row in rows if row["preset"] == name and row["tokens"] == tokens])
            rows = kept if tokens == 1 else more
            if of(rows, preset + "+block") != "–":
                lines.append([preset, tokens, of(rows, preset), of(rows, preset + "+block"),
                              of(before, preset + "+block") if tokens == 1 else "–"])
    header = ["sizes of", "tokens", "plain layer (share of its floor)", "with the model's block", "the same before"]
    return f"[{token_path}](/{token_path}), [{path}](/{path})\n\n" + table(header, lines)


def machine(path):
    result = load(path)
    about = {**result["machine"], **(result.get("device") or {}), **result["ceilings"]}
    return table(["what", "value"], [[key, about[key]] for key in about if not isinstance(about[key], (dict, list))])


VIEWS = {"journey": journey, "twins": twins, "scale": scale, "launches": launches, "repeated": repeated, "decode": decode, "gains": gains, "kernels": kernels, "level": level, "myths": myths, "tune": tune, "blocks": blocks, "routers": routers, "cuda_routers": cuda_routers, "block_cost": block_cost, "skew_cost": skew_cost, "layer_shares": layer_shares, "stream_blocks": stream_blocks, "machine": machine}


def missing(arguments):
    paths = [argument for argument in arguments if argument.startswith("results/") and not (ROOT / argument).exists()]
    return f"(not measured yet: {paths[0]})\n" if paths else ""


def rewrite(text):
    def block(match):
        view, *arguments = match.group(2).split()
        return match.group(1) + (missing(arguments) or VIEWS[view](*arguments)) + match.group(4)

    def inline(match):
        arguments = match.group(2).split()
        return match.group(1) + (missing(arguments).strip() or figure(*arguments)) + match.group(4)

    return FIGURE.sub(inline, BLOCK.sub(block, text))


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
