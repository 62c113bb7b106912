"""The command line: ``python -m imrseg COMMAND``.

Each command's modules are imported when it runs, so that ``--help`` answers at once.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, TextIO

from imrseg import __version__
from imrseg.errors import InputError, WeightsError, install, shown
from imrseg.presets import list_presets

SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".jp2", ".j2k", ".jpx",
            ".apng", ".avif", ".heic", ".heif"}  # fmt: skip
DEVICES = "auto, cpu, cuda, cuda:1 or mps"


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        if message.startswith("unrecognized arguments"):
            message += ". A label of several words stands in quotes; for another label the option is given again"
        say(f"{self.prog}: {' '.join(message.split())}", sys.stderr)
        self.exit(2)


def say(words: str, file: TextIO | None = None) -> None:
    """Print; characters of labels and file names that would steer a terminal, or that it lacks, become escapes."""
    file = file or sys.stdout
    if file is None:  # a service without a terminal
        return
    kept = (c if c.isprintable() or c in "\n\u200c\u200d" else c.encode("unicode_escape").decode() for c in words)
    encoding = file.encoding or "utf-8"
    try:
        print("".join(kept).encode(encoding, "backslashreplace").decode(encoding), file=file, flush=True)
    except BrokenPipeError:  # whoever reads what is printed has seen enough
        if file is not sys.stdout:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())
        sys.exit(1)


def whole(least: int, most: int) -> Callable[[str], int]:
    """Reads an option that is a whole number from ``least`` to ``most``."""

    def read(words: str) -> int:
        if not re.fullmatch(r"\s*[+-]?[0-9]{1,20}\s*", words) or not least <= int(words) <= most:
            raise argparse.ArgumentTypeError(f"must be a whole number from {least} to {most}, not {shown(words)}")
        return int(words)

    return read


def fraction(words: str) -> float:
    """Reads an option that is a number from 0 to 1."""
    try:
        value = float(words)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 1, not {shown(words)}")
    return value


def fold(words: str) -> int | None:
    """Reads a fold; None for all."""
    return None if words == "all" else whole(0, 3)(words)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command. Returns 0, or 2 for bad input, with one line on stderr."""
    args = parser().parse_args(argv)
    try:
        with ended_cleanly():
            args.run(args)
    except (InputError, WeightsError, OSError) as error:
        say(f"imrseg: {' '.join(str(error).split())}", sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


@contextmanager
def ended_cleanly() -> Iterator[None]:
    """Let who asks the process to end have it clean up, as Ctrl-C does; but not one of several, which wait in C code."""
    if threading.current_thread() is not threading.main_thread() or "TORCHELASTIC_RUN_ID" in os.environ:
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    top = Parser(prog="imrseg", description="Segment what a word names, from photographs that show it.")
    top.add_argument("--version", action="version", version=f"imrseg {__version__}")
    top.set_defaults(run=lambda _: top.print_help())
    commands = top.add_subparsers(title="commands", metavar="COMMAND")

    c = command(commands, "segment", segment, "masks of a label in pictures, as files")
    c.add_argument("--query", type=Path, nargs="+", action="extend", required=True, metavar="FILE|FOLDER",
                   help="pictures to segment; of a folder, those in it that are called as pictures are")  # fmt: skip
    c.add_argument("--support", type=Path, nargs="+", action="extend", default=[], metavar="FILE",
                   help="pictures that show the same thing; none: zero-shot")  # fmt: skip
    c.add_argument("--label", action="append", required=True, help="what to look for; may be given again")
    c.add_argument("--steps", type=whole(0, 20), help="refinement steps; the preset's own number by default")
    c.add_argument("--threshold", type=fraction, default=0.5, help="0 to 1, where masks are cut (default 0.5)")
    add_options(c)
    add_model(c)
    add_stages(c)
    c.add_argument("--out", type=Path, required=True, metavar="DIR")
    c.add_argument("--zip", type=Path, metavar="FILE.zip", help="every export format too: cut-outs, figures, COCO, ...")

    c = command(commands, "evaluate", evaluate, "mean IoU per step on a data set")
    add_data(c)
    c.add_argument("--fold", type=fold, help="0 to 3, or all, as by default")
    c.add_argument("--shots", type=whole(1, 10), default=1, help="supports per episode (default 1)")
    c.add_argument("--episodes", type=whole(1, 10**9), default=1000, help="default 1000")
    c.add_argument("--steps", type=whole(0, 20), help="refinement steps; the preset's own number by default")
    c.add_argument("--seed", type=whole(0, 2**64 - 1), default=0, help="that episodes are drawn by (default 0)")
    c.add_argument("--zero-shot", action="store_true", help="no supports")
    c.add_argument("--true-supports", action="store_true", help="impose the supports' true masks: the most they can do")
    c.add_argument("--eval-side", type=whole(1, 10_000), metavar="PIXELS",
                   help="score at this size, as HSNet does at 400; by default at the pictures' own")  # fmt: skip
    add_authors(c)
    add_options(c)
    add_model(c)
    add_stages(c)
    c.add_argument("--json", type=Path, required=True, metavar="OUT.json")

    c = command(commands, "train", train, "train a network (docs/training.md)")
    add_data(c)
    c.add_argument(
        "--fold", default="all", help="the fold that is held out, 0 to 3, or all, as by default, to hold none out"
    )
    c.add_argument("--extra", action="append", default=[], metavar="folder:DIR", help="another data set")
    c.add_argument(
        "--config", "--preset", default="lite", metavar="NAME", help="lite, lite-hsnet, imr-hsnet-resnet50, ..."
    )
    c.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE",
                   help="in place of the config's, such as cell=conv steps=2")  # fmt: skip
    c.add_argument("--iterations", type=whole(1, 10**9), help="in place of the config's")
    c.add_argument("--seed", type=whole(0, 2**64 - 1), help="of everything that is drawn, 0 by default")
    c.add_argument("--resume", action="store_true", help="go on from the last state in --out")
    c.add_argument("--cache", type=Path, metavar="DIR", help="where features are kept (default OUT/features)")
    c.add_argument("--tensorboard", action="store_true", help="write OUT/tensorboard, too")
    c.add_argument("--device", default="auto", help=DEVICES)
    add_coarse(c)
    add_authors(c)
    c.add_argument("--out", type=Path, required=True, metavar="DIR")

    c = command(commands, "tables", show_tables, "the paper's tables, ours beside the published rows")
    c.add_argument("results", type=Path, nargs="*", metavar="RESULT.json|FOLDER", help="written by evaluate")
    c.add_argument("--table", nargs="+", action="extend", default=[], metavar="NUMBER", help="1 to 6, S2 to S7")

    c = command(commands, "bench", bench, "seconds from two photographs to a mask")
    add_model(c)
    add_side(c)
    c.add_argument("--json", type=Path, metavar="OUT.json")

    c = command(commands, "weights", lambda _: list_weights(), "the weights that presets need")
    inner = c.add_subparsers(title="commands", metavar="COMMAND")
    command(inner, "list", lambda _: list_weights(), "each file: what it is, its licence, where it is or comes from")
    c = command(inner, "fetch", fetch_weights, "download a file, checked against its SHA-256")
    c.add_argument("name", help="as in the list")
    c = command(inner, "check", check_weights, "what a file of weights holds")
    c.add_argument("file", type=Path)
    c = command(inner, "convert", convert_weights, "an authors' checkpoint, or OpenAI's CLIP, as safetensors")
    c.add_argument("source", type=Path, metavar="IN")
    c.add_argument("target", type=Path, metavar="OUT")

    c = command(commands, "demo", demo, "the web page")
    add_model(c)
    c.epilog = "Precision and launch are those of the preset that the page opens with; others run in float32, eager."
    # A host such as Hugging Face Spaces says by Gradio's variables where to listen.
    c.add_argument("--host", default=os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1"), help="0.0.0.0 for all")
    c.add_argument("--port", type=whole(0, 65535), default=os.environ.get("GRADIO_SERVER_PORT", "7860"),
                   help="default 7860")  # fmt: skip
    c.add_argument("--share", action="store_true", help="a public address for 72 hours")
    c.add_argument("--mcp", action="store_true", help="serve as a tool for language models too")
    c.add_argument("--auth", type=Path, metavar="FILE",
                   help="user:password lines of who may come in; IMRSEG_AUTH=user:password does the same")  # fmt: skip
    return top


def command(commands: Any, name: str, run: Any, title: str) -> argparse.ArgumentParser:
    added = commands.add_parser(name, help=title, description=title[0].upper() + title[1:] + ".")
    added.set_defaults(run=run)
    return added


def add_model(c: argparse.ArgumentParser) -> None:
    c.add_argument("--preset", default="lite", metavar="NAME", help=f"one of {', '.join(list_presets())}")
    c.add_argument("--device", default="auto", help=DEVICES)
    c.add_argument(
        "--precision",
        default="float32",
        metavar="TYPE",
        help="that refinement computes in: float32 (exact); bfloat16, faster where the processor or GPU has it;"
        " float16, on GPUs",
    )
    c.add_argument(
        "--launch",
        default="eager",
        metavar="HOW",
        help="of a step: eager; graphs, on GPUs; compile, which takes minutes and is slower on a processor",
    )


def add_stages(c: argparse.ArgumentParser) -> None:
    c.add_argument("--checkpoint", type=Path, metavar="FILE", help="network weights in place of the preset's")
    add_side(c)
    add_coarse(c)


def add_side(c: argparse.ArgumentParser) -> None:
    c.add_argument("--lite-side", type=int, metavar="PIXELS",
                   help="of the square that lite sees, a multiple of 32 (default 320); more for small things")  # fmt: skip


def add_coarse(c: argparse.ArgumentParser) -> None:
    c.add_argument("--coarse", metavar="lite|clip|clip:MODEL", help="what makes the coarse masks, not the preset's own")
    c.add_argument("--clip-method", metavar="gradcam|similarity", help="CLIP's maps (default gradcam)")
    c.add_argument("--clip-contrast", metavar="softmax|cosine", help="what Grad-CAM explains (default softmax)")
    c.add_argument("--clip-side", type=int, metavar="PIXELS", help="of the square that CLIP sees")


def add_authors(c: argparse.ArgumentParser) -> None:
    c.add_argument("--authors-preprocessing", action="store_true",
                   help="with CLIP: its middle square, and the data set's classes as distractors, as published")  # fmt: skip


def add_options(c: argparse.ArgumentParser) -> None:
    c.add_argument("--aggregate", metavar="vote|mean", help="how several supports' masks become one")
    c.add_argument("--not", dest="distractors", action="append", default=[], metavar="WORD",
                   help="another thing in the pictures, to be told apart; may be given again")  # fmt: skip
    c.add_argument("--prompts", default="single", metavar="single|ensemble", help="wordings of the label")
    c.add_argument("--edges", metavar="guided|grabcut", help="fit the masks to the picture's edges")
    c.add_argument("--edges-on", metavar="last|every", help="with --edges: whose masks are fitted (default last)")
    c.add_argument("--consensus", default="on", metavar="on|off",
                   help="of lite: move all pictures' masks towards what they together say of the object")  # fmt: skip


OPTIONS = ("aggregate", "distractors", "prompts", "edges", "edges_on", "consensus")


def options_of(args: argparse.Namespace) -> dict[str, Any]:
    """The run's options, as ``Segmenter.segment`` and ``Options`` take them."""
    if args.edges_on and not args.edges:
        raise InputError("--edges-on says whose masks are fitted to edges, but --edges is not given.")
    return {name: getattr(args, name) for name in OPTIONS} | {"edges_on": args.edges_on or "last"}


def clip_settings(args: argparse.Namespace, **fixed: Any) -> Any:
    """What a command's options say of CLIP, None for nothing; ``fixed`` are settings beside them."""
    from imrseg.coarse.maskers import ClipSettings

    given = {"method": args.clip_method, "contrast": args.clip_contrast, "side": args.clip_side}
    chosen = fixed | {name: value for name, value in given.items() if value is not None}
    return ClipSettings(**chosen) if chosen else None


def load_segmenter(args: argparse.Namespace, **fixed: Any) -> Any:
    """The segmenter that a command's options describe; ``fixed`` are settings of CLIP beside them."""
    from imrseg.segmenter import Segmenter

    clip = clip_settings(args, **fixed)
    return Segmenter.from_preset(
        args.preset, args.device, args.checkpoint, args.coarse, clip, args.precision, args.launch, args.lite_side
    )


def add_data(c: argparse.ArgumentParser) -> None:
    c.add_argument("--benchmark", required=True, metavar="pascal|coco|fss|folder")
    c.add_argument(
        "--data",
        type=Path,
        required=True,
        metavar="ROOT",
        help="holds VOC2012/, COCO2014/ or FSS-1000/; of a folder, class/images and class/masks",
    )
    c.add_argument(
        "--splits", type=Path, metavar="DIR", help="HSNet's fold lists, in val/ and trn/; made where not given"
    )


def segment(args: argparse.Namespace) -> None:
    from tqdm import tqdm

    from imrseg import bundle, export
    from imrseg.images import open_picture, open_pictures
    from imrseg.run import check_label

    options = options_of(args)
    once: dict[str, Path] = {}
    for file in (file for given in args.query for file in pictures_in(given)):
        once.setdefault(os.path.abspath(file), file)
    queries = list(once.values())
    labels = list(dict.fromkeys(map(check_label, args.label)))
    sources = [*queries, *args.support]
    if args.zip:
        bundle.check_packages()
        export.check_target(args.zip, sources)
    export.home_of(args.out)
    supports = open_pictures(args.support)
    for query in queries:  # a broken picture among many is better known now than an hour later
        open_picture(query)
    segmenter = load_segmenter(args)

    founds: list[bundle.Found] = []

    def one(query: Path, label: str, out: Path) -> dict[str, Any]:
        picture = open_picture(query)
        result = segmenter.segment(picture, supports, label, args.steps, args.threshold, **options)
        if args.zip:
            founds.append(bundle.Found.of(result, query, args.support))
        return export.write_result(result, out, query=picture, supports=supports, segmenter=segmenter)

    jobs: dict[str, tuple[Path, str]] = {}  # by their folders
    for query in queries:
        for label in labels:
            jobs[bundle.safe_name(f"{query.stem}_{label}", jobs)] = query, label
    if len(jobs) == 1:
        jobs = {"": next(iter(jobs.values()))}
    for name in ("", *jobs) if (args.out / "result.json").is_file() else jobs:
        export.check_apart(args.out / name, sources)
    if args.zip:
        export.check_zip(args.zip, args.out, jobs)
    if "" in jobs:
        records = {"": one(*jobs[""], args.out)}
    else:
        records = {}
        with export.staged(args.out) as folder:
            for name, (query, label) in tqdm(jobs.items(), desc="segment", unit="result"):
                records[name] = one(query, label, folder / name)
            export.write_json(folder / "manifest.json", manifest(jobs, records, segmenter))
    if args.zip:
        bundle.write_zip(args.zip, founds, segmenter)
    for name, record in records.items():
        covered = record["steps"][-1]["covered"]
        say(f"{args.out / name}: “{record['label']}” covers {covered:.1%} of {record['query']}")
        for warning in record["warnings"]:
            say(f"  {warning}")


def pictures_in(given: Path) -> list[Path]:
    """The picture itself, or the pictures of a folder by name, without those that are results."""
    from imrseg.export import results_in

    if not given.is_dir():
        return [given]
    files = sorted({p for p in given.iterdir() if not p.is_dir() and p.name[0] != "."} - {*results_in(given)})
    found = [p for p in files if p.suffix.lower() in SUFFIXES]
    if not found:
        raise InputError(f"The folder “{given}” holds no pictures. Accepted: {', '.join(sorted(SUFFIXES))}.")
    if len(found) < len(files):
        left = [p.name for p in files if p not in found]
        others = f"{', '.join(left[:3])}{', ...' if len(left) > 3 else ''}"
        say(f"{given}: left out, for they are not called as pictures are: {others} ({len(left)})", sys.stderr)
    return found


def manifest(jobs: dict[str, tuple[Path, str]], records: dict[str, dict[str, Any]], segmenter: Any) -> dict[str, Any]:
    """What lies where; a query whose name another has, too, is called by its path."""
    from imrseg import export

    named = Counter(query.name for query in {query for query, _ in jobs.values()})
    results = []
    for name, record in records.items():
        query = jobs[name][0]
        kept = {key: record[key] for key in ("label", "confidence", "warnings")}
        called = query.name if named[query.name] == 1 else query.as_posix()
        results.append({"folder": name, "query": called, **kept, "covered": record["steps"][-1]["covered"]})
    return {**export.describe(segmenter), "results": results}


def evaluate(args: argparse.Namespace) -> None:
    from imrseg import distributed, evaluation, tables
    from imrseg.export import check_target, write_json
    from imrseg.run import Options
    from imrseg.segmenter import pick_device

    check_target(args.json)
    with distributed.joined(pick_device(args.device)) as device:
        args.device = str(device)
        entries = evaluation.held_out(args.benchmark, args.data, args.splits, args.fold)
        authors = {"centre": True, "vocabulary": evaluation.classes(args.benchmark, entries)}
        segmenter = load_segmenter(args, **(authors if args.authors_preprocessing else {}))
        result = evaluation.evaluate(
            segmenter,
            entries,
            shots=args.shots,
            episodes=args.episodes,
            steps=args.steps,
            seed=args.seed,
            zero_shot=args.zero_shot,
            true_supports=args.true_supports,
            options=Options(**options_of(args)),
            uniform=args.benchmark == "coco",
            names=evaluation.expected(args.benchmark, entries, args.fold),
            side=args.eval_side,
        )
        if distributed.rank() == 0:
            try:
                write_json(args.json, {**result, "benchmark": args.benchmark, "fold": args.fold})
            finally:  # hours of work: on the terminal, if not in the file
                say(tables.by_class(result))
                if result["seen"]:
                    say(f"The checkpoint was trained on masks of these classes: {', '.join(result['seen'])}.")
                if result["skipped"]:
                    say(f"Classes with too few pictures are not in the mean: {', '.join(result['skipped'])}.")
                if result["unreached"]:
                    usable = sum(entry.name not in result["skipped"] for entry in entries)
                    say(f"No episode came to {len(result['unreached'])} classes, which are not in the mean:"
                        f" {', '.join(result['unreached'])}. {usable} episodes take each line once.")  # fmt: skip


def show_tables(args: argparse.Namespace) -> None:
    from imrseg import tables

    say(tables.report(tables.load_results(args.results), args.table))


def train(args: argparse.Namespace) -> None:
    from imrseg import distributed, training
    from imrseg.data.benchmarks import classes
    from imrseg.segmenter import pick_device

    given = {"seed": args.seed, "iterations": args.iterations}
    fixed = {name: value for name, value in given.items() if value is not None}  # else what --set says
    config = training.get_config(args.config, args.set, **fixed)
    with distributed.joined(pick_device(args.device)) as device:
        sources, pictures = training.gather(args.benchmark, args.data, args.splits, args.fold, args.extra)
        masker = None
        if args.coarse or (config.network != "lite" and config.start == "coarse"):
            authors = {"centre": True, "vocabulary": classes(args.benchmark, sources[0])}
            clip = clip_settings(args, **(authors if args.authors_preprocessing else {}))
            masker = training.load_masker(args.coarse or "clip", clip, device)
        cache = args.cache or args.out / "features"
        path = training.train(sources, pictures, config, args.out, cache, args.resume, masker, device, args.tensorboard)
        if distributed.rank() == 0:
            say(str(path))


def bench(args: argparse.Namespace) -> None:
    from imrseg import bench
    from imrseg.export import check_target, write_json

    if args.json:
        check_target(args.json)
    measured = bench.bench(args.preset, args.device, args.precision, args.launch, args.lite_side)
    print(bench.table(measured))
    if args.json:
        write_json(args.json, measured)


def list_weights() -> None:
    from imrseg import hub, weights

    for known in hub.KNOWN.values():
        size = "size unknown" if known.size is None else f"{known.size / 1e6:.1f} MB"
        say(f"{known.name}  {size}\n  {known.what}\n  licence: {known.licence}\n  from: {known.origin}")
        if weights.have(known.name):
            path = weights.find(known.name)
            say(f"  here: {path}  SHA-256 {weights.sha256(path)}")
        else:
            say(f"  missing: {hub.missing(known.name)}")


def fetch_weights(args: argparse.Namespace) -> None:
    from imrseg import weights

    say(str(weights.fetch(args.name)))


def check_weights(args: argparse.Namespace) -> None:
    from imrseg import weights

    say("\n".join(weights.describe(args.file)))


def convert_weights(args: argparse.Namespace) -> None:
    from imrseg import weights

    weights.convert(args.source, args.target)
    say("\n".join(weights.describe(args.target)))


def demo(args: argparse.Namespace) -> None:
    import logging

    try:  # before any model: it prepares ZeroGPU
        from imrseg.app.doors import users_of
        from imrseg.app.server import serve
    except ImportError as error:
        raise InputError(f"The page needs Gradio: {install('app')} ({error}).") from None
    from imrseg.segmenter import Segmenter

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    users = users_of(args.auth)
    check_port(args.host, args.port)
    segmenter = Segmenter.from_preset(args.preset, args.device, precision=args.precision, launch=args.launch)
    serve(segmenter, args.host, args.port, args.share, args.mcp, users)


def check_port(host: str, port: int) -> None:
    """See that nothing else listens there; port 0 is any.

    Raises:
        InputError: something does, or the host is none of this machine's.
    """
    import socket

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise InputError(
                f"The page cannot be served at {host}:{port} ({error.strerror}). Give another --port."
            ) from None
