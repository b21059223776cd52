"""``python -m xopt``: what is installed, what is in a checkpoint, how two differ, what a rule does."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xopt.checkpoint._safetensors import File

_SAME, _DIFFERENT, _TROUBLE = 0, 1, 2


def main(words: Sequence[str] | None = None) -> int:
    """Run a command: 0, 1 where two checkpoints differ, 2 where something is wrong, which is said in one line."""
    args = _parser().parse_args(words)
    args.code = _SAME
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # names that the terminal has no letters for
    try:
        args.run(args)
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:  # of `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        text = "; ".join(x.strip() for x in str(error).splitlines() if x.strip())
        if not isinstance(error, OSError | ValueError | TypeError | ImportError) or not text:
            text = f"{type(error).__name__}: {text}"
        print(f"xopt {args.command}: {_plain(text)}", file=sys.stderr)
        return _TROUBLE
    code: int = args.code
    return code


def _parser() -> argparse.ArgumentParser:
    text = "What is in a checkpoint, how two differ, what a rule does."
    parser = argparse.ArgumentParser(prog="python -m xopt", description=text)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=text, description=text)
        made.set_defaults(run=run)
        made.add_argument("--json", action="store_true", help="print JSON")
        return made

    def checkpoint(made: argparse.ArgumentParser, *names: str) -> None:
        for name in names:
            made.add_argument(name, metavar=name.upper(), help="a checkpoint, or a directory, of which the latest")
        made.add_argument("--no-checksums", action="store_true", help="do not compare arrays with their checksums")

    command("config", _config, "Say which libraries are installed, and which runner serves each.")
    checkpoint(command("show", _show, "Say what is in a checkpoint."), "file")
    made = command("diff", _diff, "Say how two checkpoints differ; the exit code is 1 if they do.")
    checkpoint(made, "a", "b")
    made.add_argument("--atol", type=float, default=0.0, help="the largest difference of numbers that is none")
    made = command("explain", _explain, "Say what one step of a rule reads, writes and computes.")
    made.add_argument("rule", metavar="RULE", help="as Python writes it: 'AdamW(lr=1e-3)'")
    text = "of the parameter, 1000,1000 by default, '' for a number; or --shape a/w=10,10 --shape b=10 for several"
    made.add_argument("--shape", action="append", help=text)
    made.add_argument("--dtype", default="float32", help="of the parameter")
    made.add_argument("--runner", choices=["eager", "tiled", "llvm"], help="by default the best there is")
    made.add_argument("--source", action="store_true", help="also print what the runner makes of it")
    text = "Turn the state of an optimizer of torch.optim, or of optax in a file of Flax, into a checkpoint, or back."
    made = command("convert", _convert, text)
    text = (
        "the state_dict of the optimizer of torch, x.pt; a TrainState or an opt_state of Flax, x.msgpack; a checkpoint"
    )
    made.add_argument("source", metavar="FROM", help=text)
    made.add_argument("target", metavar="TO", help="a checkpoint, x.safetensors; or x.pt, x.pth; or x.msgpack")
    made.add_argument("--rule", required=True, help="of the same formula: 'Adam(lr=1e-3, like=\"torch\")'")
    text = "the parameters: the state_dict of the model, x.pt, to torch only for the names; x.msgpack if not in FROM"
    made.add_argument("--model", metavar="FILE", help=text)
    made.add_argument("--like", metavar="FILE", help="to torch and Flax: a file of the optimizer that is to go on")
    made.add_argument("--step", type=int, help="from Flax: the number of steps taken, where the file has none")
    return parser


def _config(args: Any) -> None:
    from xopt._config import configuration, show_config

    if args.json:
        _dump(configuration())
    else:
        show_config()


def _show(args: Any) -> None:
    from xopt.checkpoint._files import opened

    with opened(args.file, not args.no_checksums) as file:
        file.verify()
        described = _described(file)
    checked = "not compared" if args.no_checksums else "right"
    if args.json:
        _dump({**described, "checksums": checked})
        return
    sizes = [x["bytes"] for x in described["tensors"].values()]
    print(f"{_plain(described['file'])}: step {described['step']:,}, by xopt {_plain(described['xopt'])}")
    for link in described["rule"]:
        fields = ", ".join(f"{n}={x}" for n, x in [*link["static"].items(), *link["hyper"].items()])
        print(f"  {_plain(link['place'])}: {_plain(link['rule'])}({_plain(fields)})")
    for name, x in described["carry"].items():
        print(f"  {_plain(name)} = {_plain(str(x))}")
    if described["extra"]:
        print(f"  extra: {_plain(json.dumps(described['extra'], ensure_ascii=False))}")
    wide = max((len(_plain(n)) for n in described["tensors"]), default=0)
    for name, x in described["tensors"].items():
        print(f"  {_plain(name):{wide}}  {x['dtype']:10} {x['shape']!s:16} {x['bytes']:>14,} bytes  {x['crc32']}")
    print(f"{len(sizes)} arrays, {sum(sizes):,} bytes; checksums: {checked}")


def _described(file: File) -> dict[str, Any]:
    """Return what is said of a checkpoint, by name."""
    tensors = {
        name: {"dtype": x.dtype, "shape": list(x.shape), "bytes": x.end - x.begin, "crc32": f"{x.crc:08x}"}
        for name, x in sorted(file.tensors.items())
    }
    known = {n: file.meta.get(n) for n in ("schema", "xopt", "library", "step", "rule", "carry", "extra")}
    kinds = {"step": int, "rule": list, "carry": dict, "extra": dict}
    links = known["rule"] if isinstance(known["rule"], list) else []
    fine = all(isinstance(known[n], kind) for n, kind in kinds.items()) and all(map(_is_link, links))
    if not fine:
        raise ValueError(f"{os.fsdecode(file.where)}: the metadata is not that of a run")
    return {"file": os.fsdecode(file.where), **known, "tensors": tensors}


def _is_link(x: Any) -> bool:
    """Whether this is what a checkpoint says of a component."""
    kinds = {"place": str, "rule": str, "static": dict, "hyper": dict}
    return isinstance(x, dict) and all(isinstance(x.get(n), kind) for n, kind in kinds.items())


def _diff(args: Any) -> None:
    from xopt.checkpoint._files import opened

    if not args.atol >= 0:
        raise ValueError(f"--atol: {args.atol}, but it must be at least 0")
    with opened(args.a, not args.no_checksums) as a, opened(args.b, not args.no_checksums) as b:
        found = [*_of_meta(_described(a), _described(b)), *_of_arrays(a, b, args.atol)]
    args.code = _DIFFERENT if found else _SAME  # also if nobody reads it to the end
    if args.json:
        _dump({"differences": found})
    else:
        for line in found:
            print(f"{_plain(line['where'])}: {_plain(line['what'])}")


def _of_meta(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Compare what stands beside the arrays."""
    sides = [{**dict(_leaves({n: x[n] for n in ("step", "carry", "extra")})), **_of_rule(x["rule"])} for x in (a, b)]
    found = []
    for name in dict.fromkeys([*sides[0], *sides[1]]):
        x, y = (json.dumps(side[name], ensure_ascii=False) if name in side else "nothing" for side in sides)
        if x != y:
            found.append({"where": name, "what": f"{x} and {y}"})
    return found


def _of_rule(links: Any) -> dict[str, Any]:
    found = {}
    for link in links:
        found[f"rule {link['place']}"] = link["rule"]
        found |= {f"rule {link['place']}.{n}": x for n, x in [*link["static"].items(), *link["hyper"].items()]}
    return found


def _leaves(x: Any, name: str = "") -> list[tuple[str, Any]]:
    """Return what is in nested dicts by its path, as a JSON pointer has it; empty ones have nothing in them."""
    if not isinstance(x, dict):
        return [(name, x)]
    from xopt._arrays.tree import escaped

    start = f"{name}/" if name else ""
    return [leaf for key, value in x.items() for leaf in _leaves(value, start + escaped(key))]


def _of_arrays(a: File, b: File, atol: float) -> list[dict[str, Any]]:
    """Compare arrays, one at a time in memory."""
    found = []
    for name in sorted({*a.tensors, *b.tensors}):
        if name not in a.tensors or name not in b.tensors:
            found.append({"where": name, "what": f"only in {(a if name in a.tensors else b).where}"})
            continue
        x, y = a.tensors[name], b.tensors[name]
        if (x.dtype, x.shape) != (y.dtype, y.shape):
            found.append({"where": name, "what": f"{x.dtype} {x.shape} and {y.dtype} {y.shape}"})
        elif what := _apart(a.read(name), b.read(name), x.dtype, atol):
            found.append({"where": name, **what})
    return found


def _apart(x: Any, y: Any, dtype: str, atol: float) -> dict[str, Any] | None:
    """Say by how much two arrays differ; the same bits are the same number, also of NaN."""
    import numpy as np

    from xopt.checkpoint._safetensors import memory

    if memory(x) == memory(y):
        return None
    if dtype == "bfloat16":  # 16 bits, the first half of a float32
        x, y = ((z.astype(np.uint32) << 16).view(np.float32) for z in (x, y))
    wide = np.complex128 if np.iscomplexobj(x) else np.float64
    x, y = x.astype(wide), y.astype(wide)
    same = (x == y) | ((x != x) & (y != y))
    with np.errstate(invalid="ignore", over="ignore"):
        far = np.where(same, 0.0, np.abs(x - y))
    far = np.where(far == far, far, np.inf)
    count, largest = int(np.sum(far > atol)), float(np.max(far))
    if not count:
        return None
    return {
        "what": f"{count:,} of {x.size:,} numbers differ, by at most {largest:.3g}",
        "count": count, "largest": largest if largest < np.inf else None,
    }  # fmt: skip


def _explain(args: Any) -> None:
    import numpy as np

    import xopt
    from xopt._arrays import NUMPY, dtype_of
    from xopt._arrays.dtypes import TABLE
    from xopt._parse import parse_rule

    rule = parse_rule(args.rule)
    shapes = dict(map(_shape, args.shape or ["1000,1000"]))
    if len(shapes) > 1 and None in shapes:
        raise ValueError("--shape: several of them need names, like a/w=10,10")
    if args.dtype not in TABLE:
        raise ValueError(f"--dtype: {args.dtype!r}, but it must be one of {', '.join(TABLE)}")
    zero = np.zeros((), dtype_of(NUMPY, np, args.dtype))
    arrays = {name: np.broadcast_to(zero, shape) for name, shape in shapes.items()}
    like = arrays.get(None, arrays)
    text = xopt.explain(rule, like, runner=args.runner, source=args.source)
    if args.json:
        _dump(
            {
                "rule": repr(rule),
                "shapes": {n or "": list(x) for n, x in shapes.items()},
                "dtype": args.dtype,
                "text": text,
            }
        )
    else:
        print(text)


def _shape(text: str) -> tuple[str | None, tuple[int, ...]]:
    """Read ``10,10``, or ``name=10,10``."""
    name, sign, lengths = text.rpartition("=")
    try:
        shape = tuple(int(n) for n in lengths.split(",") if n.strip())
    except ValueError:
        raise ValueError(f"--shape: {text!r}, but it must be lengths like 1000,1000") from None
    if min(shape, default=0) < 0:
        raise ValueError(f"--shape: {text!r}, but a length is at least 0")
    return name if sign else None, shape


def _convert(args: Any) -> None:
    from xopt._parse import parse_rule

    rule = parse_rule(args.rule)
    flax, back = args.target.endswith(".msgpack"), args.target.endswith((".pt", ".pth", ".msgpack"))
    from_flax = not back and args.source.endswith(".msgpack")
    need = {"like"} if back else set() if from_flax else {"model"}
    idle = {"like"} - need | ({"model"} if flax else set()) | (set() if from_flax else {"step"})
    for name in ("model", "like", "step"):
        given = getattr(args, name) is not None
        if name in need and not given:
            raise ValueError(f"--{name}: missing, but it is needed for {args.target}")
        if name in idle and given:
            raise ValueError(f"--{name}: not needed for {args.target}")
    if flax or from_flax:
        from xopt import _flax_files

        if flax:
            count = _flax_files.to_flax_file(args.source, args.target, rule, args.like)
        else:
            count = _flax_files.to_checkpoint(args.source, args.target, rule, args.model, args.step)
    else:
        from xopt import _torch_files

        if back:
            count = _torch_files.to_torch_file(args.source, args.target, rule, args.like, args.model)
        else:
            count = _torch_files.to_checkpoint(args.source, args.target, rule, args.model)
    if args.json:
        _dump({"from": args.source, "to": args.target, "parameters": count})
    else:
        print(f"{args.target}: the state of {count} parameters")


def _dump(x: Any) -> None:
    print(json.dumps(x, indent=2, allow_nan=False))


def _plain(text: str) -> str:
    """Return a text of a file so that no terminal obeys it."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


if __name__ == "__main__":
    sys.exit(main())
