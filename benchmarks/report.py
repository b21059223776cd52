"""Write the tables of docs/benchmarks.md and its plots from the results: ``python -m benchmarks.report``.

It needs the files of results and matplotlib, none of what was measured.
"""

from __future__ import annotations

import argparse
import datetime
import json
from collections.abc import Iterator
from pathlib import Path

from benchmarks import machine, plots, targets
from benchmarks.targets import Results

HERE = Path(__file__).parent
BEGIN, END = "<!-- results: written by python -m benchmarks.report -->", "<!-- end of results -->"
MAIN = (f"vector-{2**28}", f"vector-{2**25}", "many-fresh", "many", "gpt2", "resnet50", "ten")
"""Workloads that have a table of their own, for Adam in float32."""


def newest(folder: Path) -> list[Results]:
    """Return the newest results of each kind of device."""
    found: dict[str, Results] = {}
    for path in sorted(folder.glob("*.json")):  # names start with the date
        data: Results = json.loads(path.read_text())
        found[data["device"]] = data
    return [found[device] for device in ("cpu", "cuda") if device in found]


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """Return a Markdown table; all columns but the first are numbers."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return [*("| " + " | ".join(line) + " |" for line in lines), ""]


def circumstances() -> Results:
    """Return when and where something is measured."""
    today = datetime.date.today().isoformat()
    return {"date": today, "hardware": machine.hardware("cpu"), "versions": machine.versions()}


def publish(name: str, found: Results, lines: list[str], file: str, quick: bool) -> None:
    """Print the lines; unless that was quick, keep what ``benchmarks.<name>`` found and write them into a page."""
    text = "\n".join(lines)
    print(text)
    if quick:
        return
    folder, path = HERE / "results" / name, HERE.parent / "docs" / file
    folder.mkdir(exist_ok=True)
    record = folder / f"{found['date']}-{machine.short(found['hardware'])}.json"
    record.write_text(json.dumps(found, indent=1), encoding="utf-8")
    begin, end = f"<!-- results: written by python -m benchmarks.{name} -->", "<!-- end of results -->"
    before, rest = path.read_text(encoding="utf-8").split(begin)
    path.write_text(f"{before}{begin}\n\n{text}\n{end}{rest.split(end)[1]}", encoding="utf-8")


def page(results: Results, images: dict[str, str]) -> Iterator[str]:
    """Yield the lines of the page about one device."""
    about, options = results["hardware"], results["options"]
    caches = ", ".join(f"{name} {size / 2**20:.3g} MiB" for name, size in about["caches"].items())
    gpu = f"{about['gpu']} with {about['gpu memory'] / 2**30:.0f} GiB; " if "gpu" in about else ""
    yield f"## Measured: {about.get('gpu') or about['cpu']}\n"
    yield f"{results['date']}; {gpu}{about['cpu']}, {about['cores']} cores, {caches}; {about['system']}; "
    yield f"{options['threads']} CPU threads, {options['rounds']} rounds" + (", a quick run" * options["quick"]) + ".\n"
    yield ", ".join(f"{name} {version}" for name, version in results["versions"].items()) + ".\n"
    busy = [x for x in results["findings"] if (x.get("others") or 0) > 0.05]
    if busy:
        yield f"Other processes were busy during {len(busy)} cells; those are marked ⚠.\n"
    yield "### What it must show\n"
    verdicts = list(targets.judge(results))
    yield from table(["Figure", "must be", "is", ""], [[v.target.title, v.limit, v.number, v.word] for v in verdicts])
    yield from (f"![{alt}]({name})\n" for name, alt in images.items())
    yield "### Adam, float32\n"
    for workload in MAIN:
        cell = targets.cell(results, workload)
        if cell:
            yield from one(cell)
    yield from others(results)
    yield from starts(results)
    yield from memory(results)


def one(cell: Results) -> Iterator[str]:
    """Yield the table of one cell."""
    title = cell["title"][0].upper() + cell["title"][1:]
    arrays = "1 array" if cell["leaves"] == 1 else f"{cell['leaves']:,} arrays"
    yield f"**{title}**: {arrays}, {cell['elements']:,} parameters{_mark(cell)}\n"
    best, ceiling = plots.champion(cell), plots.ceiling(cell)
    rows = []
    for name, x in cell["results"].items():
        rate = x["bytes"] / x["median"]
        ratio = x["median"] / cell["results"][best]["median"] if best else None
        rows.append(
            [
                name,
                f"{_time(x['median'])} ({_time(x['low'])}–{_time(x['high'])})",
                f"{rate / 1e9:.3g}",
                f"{rate / ceiling:.2g}" if ceiling else "–",
                f"{ratio:.3g}" if ratio and not name.startswith(("stream", "copy")) else "",
            ]
        )
    yield from table(["", "ms a step (quartiles)", "GB/s", "of the ceiling", f"time, × {best}'s"], rows)
    yield from _skipped(cell)


def _time(seconds: float) -> str:
    return f"{seconds * 1e3:.3g}"


def _mark(cell: Results) -> str:
    return " ⚠" if (cell["others"] or 0) > 0.05 else ""


def _skipped(cell: Results) -> Iterator[str]:
    if cell["skipped"]:
        yield "Not measured: " + "; ".join(f"{name} ({why})" for name, why in cell["skipped"].items()) + ".\n"


def others(results: Results) -> Iterator[str]:
    """Yield one table of the bandwidths of all other rules and dtypes."""
    cells = [x for x in results["findings"] if x["kind"] == "cell" and x["suite"] in ("rules", "dtypes")]
    cells += [x for x in results["findings"] if x["kind"] == "cell" and x["suite"] == "models" and x["rule"] != "adam"]
    if not cells:
        return
    yield "### Rules and dtypes\n"
    yield "GB/s, and the fraction of the ceiling of the same cell.\n"
    names = list(dict.fromkeys(name for x in cells for name in x["results"]))
    head = ["", *(f"{_RULES.get(x['rule'], x['rule'])}, {x['dtype']}, {x['title']}{_mark(x)}" for x in cells)]
    rows = []
    for name in names:
        row = [name]
        for x in cells:
            found, ceiling = x["results"].get(name), plots.ceiling(x)
            rate = found["bytes"] / found["median"] if found else 0.0
            part = f" ({rate / ceiling:.2g})" if ceiling else ""
            row.append(f"{rate / 1e9:.3g}{part}" if found else "–")
        rows.append(row)
    yield from table(head, rows)
    why = dict.fromkeys(f"{name} ({reason})" for x in cells for name, reason in x["skipped"].items())
    yield "Not measured: " + "; ".join(why) + ".\n" if why else ""


_RULES = {"sgd": "SGD with momentum", "adam": "Adam", "adamw": "AdamW", "lion": "Lion", "clip": "clip + AdamW"}


def starts(results: Results) -> Iterator[str]:
    """Yield the table of first steps."""
    found = [x for x in results["findings"] if x["kind"] == "start"]
    if not found:
        return
    yield "### The first step in a fresh process\n"
    yield "Seconds. A second process, where there is one, finds what the first has compiled and kept on disk.\n"
    rows = []
    for x in found:
        for which, times in x["found"].items() if "skipped" not in x["found"] else ():
            numbers = [f"{times[k]:.3g}" for k in ("import", "make", "first", "second")]
            rows.append([f"{x['contender']}, {_title(x['workload'])}, {which}", *numbers])
    yield from table(["", "import", "make the optimizer", "first step", "second step"], rows)


def memory(results: Results) -> Iterator[str]:
    """Yield the table of memory."""
    found = [x for x in results["findings"] if x["kind"] == "memory" and "skipped" not in x["found"]]
    if not found:
        return
    yield "### Memory beyond parameters, gradients and state\n"
    yield "MB. *A step*: growth of the resident memory at the peak of a warm step (on a GPU, all that pools took).\n"
    yield "*All*: at the peak, with what is kept between steps, where NumPy's own account tells.\n"
    rows = []
    for x in found:
        step, all_ = (x["found"].get(k) for k in ("step", "traced"))
        numbers = ["" if n is None else f"{max(0.0, n) / 1e6:.3g}" for n in (step, all_)]
        rows.append([f"{x['contender']}, {_title(x['workload'])}", *numbers])
    yield from table(["", "a step", "all"], rows)


def _title(workload: str) -> str:
    if workload.startswith("vector-"):
        return f"one vector of {int(workload.removeprefix('vector-')):,}"
    return {"many": "1,000 × 1,000"}.get(workload, workload)


def main(argv: list[str] | None = None) -> None:
    """Write the page and the plots."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("--results", type=Path, default=HERE / "results", help="folder of the results")
    parser.add_argument("--docs", type=Path, default=HERE.parent / "docs", help="folder of the page")
    args = parser.parse_args(argv)
    lines = []
    for results in newest(args.results):
        images = plots.draw(results, args.docs / "_static")
        lines += list(page(results, {f"_static/{path.name}": alt for path, alt in images.items()}))
    text = (args.docs / "benchmarks.md").read_text()
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    body = "\n".join(lines) or "Nothing has been measured yet.\n"
    (args.docs / "benchmarks.md").write_text(f"{before}{BEGIN}\n\n{body}\n{END}{after}")


if __name__ == "__main__":
    main()
