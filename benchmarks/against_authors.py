"""IMR-HSNet against the authors' code: the same weights and inputs, in turns, on this machine.

    python benchmarks/against_authors.py --authors IMR-HSNet --json out.json

Takes a checkout of github.com/Whileherham/IMR-HSNet, which is neither shipped nor needed otherwise.
Each round runs theirs and ours one after the other; what counts is the ratio within a round, since
other work on the machine slows both. Only the network is timed: two pictures of 400 x 400 and their
coarse masks in, logits of both pictures out.
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
import warnings
from pathlib import Path
from statistics import median
from typing import Any

import torch
from measure import flops, in_turns, machine, peak_gflops, peak_memory
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from imrseg.models import IMRHSNet
from imrseg.models.hsnet import SIDE, STRIDE
from imrseg.models.refiner import RefinerState

TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}  # of the largest logit
BACKBONES = ("resnet50", "vgg16")
SHOTS = 5

Inputs = tuple[Tensor, Tensor, Tensor, Tensor]  # query, support, and their coarse masks


def authors_network(folder: Path, backbone: str) -> Any:
    """Their network with drawn weights; it would read ImageNet's from a fixed path."""
    from torchvision import models

    if not (folder / "model" / "hsnet_imr.py").is_file():
        raise SystemExit(f"{folder} is not a checkout of the authors' repository: it has no model/hsnet_imr.py.")
    sys.path.insert(0, str(folder))
    load, drawn = torch.load, getattr(models, backbone)(weights=None).state_dict()
    torch.load = lambda *args, **kwargs: drawn
    try:
        module = importlib.import_module("model.hsnet_imr")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torchvision's old arguments
            net = module.HypercorrSqueezeNetwork_imr(backbone, False)
    finally:
        torch.load = load
    nn.init.normal_(net.state, std=0.1)
    return net.eval()


def their_logits(net: Any, inputs: Inputs, steps: int) -> Tensor:
    """Logits of the last step, (2, 2, 100, 100): query, support."""
    query, support, query_mask, support_mask = inputs
    out: list[Tensor] = []
    hook = net.res.register_forward_hook(lambda module, args, result: out.append(result))
    net(query, support, support_mask[:, 0].clone(), query_mask[:, 0].clone(), stage=steps)
    hook.remove()
    return torch.cat([out[-1], out[-2]])


def our_logits(net: IMRHSNet, inputs: Inputs, steps: int) -> Tensor:
    last = net(*inputs, steps=steps)[-1]
    return torch.cat([last.query_logits, last.support_logits])


def networks(authors: Path, backbone: str, precision: str) -> tuple[Any, IMRHSNet]:
    torch.manual_seed(0)
    theirs = authors_network(authors, backbone)
    ours = IMRHSNet(backbone, authors_compatible=True).eval()
    ours.load_authors_state_dict(theirs.state_dict())
    ours.fuse()
    if precision != "float32":
        ours.refiner.lower(getattr(torch, precision))
    return theirs, ours


def draw_inputs(seed: int) -> Inputs:
    rng = torch.Generator().manual_seed(seed)
    pictures = [torch.randn(1, 3, SIDE, SIDE, generator=rng) for _ in range(2)]
    masks = [torch.randn(1, 1, SIDE // STRIDE, SIDE // STRIDE, generator=rng).relu() for _ in range(2)]
    return pictures[0], pictures[1], masks[0] / masks[0].max(), masks[1] / masks[1].max()


def compare(theirs: Any, ours: IMRHSNet, steps: int, rounds: int) -> dict[str, Any]:
    """Deviation, medians in seconds and the median ratio, for a number of steps."""
    inputs = draw_inputs(steps)
    wanted, got = their_logits(theirs, inputs, steps), our_logits(ours, inputs, steps)
    times = in_turns([lambda: their_logits(theirs, inputs, steps), lambda: our_logits(ours, inputs, steps)], rounds)
    return {
        "deviation": float((got - wanted).abs().max() / wanted.abs().max()),
        "theirs_seconds": median(times[0]),
        "ours_seconds": median(times[1]),
        "ratio": median(a / b for a, b in zip(*times, strict=True)),
        "theirs_gflop": flops(lambda: their_logits(theirs, inputs, steps)),
        "ours_gflop": flops(lambda: our_logits(ours, inputs, steps)),
    }


def reuse(net: IMRHSNet, steps: int, rounds: int) -> dict[str, Any]:
    """What five supports and a second label on the same pictures cost, against one run."""
    query, support, query_mask, support_mask = draw_inputs(0)
    supports = [draw_inputs(k)[1] for k in range(SHOTS)]
    known = net.prepare(query, support)

    def refine(state: RefinerState) -> None:
        for _ in range(steps):
            state = net.refiner.step(state)

    def shots() -> None:
        features = net.backbone(query)
        for other in supports:
            refine(net.refiner.start(features, net.backbone(other), query_mask, support_mask))

    def again() -> None:
        refine(net.refiner.begin(known, query_mask, support_mask))

    one, five, label = in_turns([lambda: net(query, support, query_mask, support_mask, steps), shots, again], rounds)
    return {
        "steps": steps,
        f"{SHOTS}_shots_over_one": median(b / a for a, b in zip(one, five, strict=True)),
        "second_label_over_first": median(b / a for a, b in zip(one, label, strict=True)),
    }


def memory_of(which: str, args: argparse.Namespace, steps: int) -> int:
    """``peak_memory`` of one forward, in a process of its own."""
    command = [sys.executable, __file__, "--authors", str(args.authors), "--backbone", args.backbone,
               "--threads", str(args.threads), "--precision", args.precision, "--steps", str(steps), "--only", which]  # fmt: skip
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def table(result: dict[str, Any]) -> str:
    """The result for the terminal."""
    lines = [
        f"{result['backbone']}, {result['precision']}, {result['threads']} threads, torch {result['torch']};"
        f" convolutions reach {result['peak_gflops']:.0f} GFLOP/s",
        "steps   theirs     ours    ratio   deviation   GFLOP theirs/ours   ours of the peak   memory theirs/ours",
    ]
    for steps, r in result["steps"].items():
        share = r["ours_gflop"] / r["ours_seconds"] / result["peak_gflops"]
        lines.append(
            f"{steps:>5} {r['theirs_seconds']:7.2f} s {r['ours_seconds']:6.2f} s {r['ratio']:7.2f}x {r['deviation']:11.1e}"
            f" {r['theirs_gflop']:11.0f} / {r['ours_gflop']:.0f} {share:17.0%}"
            f" {r['theirs_bytes'] / 1e6:13.0f} / {r['ours_bytes'] / 1e6:.0f} MB"
        )
    if "further_step_share" in result:
        lines.append(f"a further step of ours takes {result['further_step_share']:.2f} of one of theirs")
    reused = result["reuse"]
    lines.append(
        f"{reused['steps']} steps: {SHOTS} shots take {reused[f'{SHOTS}_shots_over_one']:.2f} times one,"
        f" a second label {reused['second_label_over_first']:.2f} of the first"
    )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--authors", type=Path, required=True, help="their checkout, with model/hsnet_imr.py")
    parser.add_argument("--backbone", choices=BACKBONES, default="resnet50")
    parser.add_argument("--precision", choices=TOLERANCE, default="float32", help="of our network")
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, help="write the result here too")
    parser.add_argument("--only", choices=("theirs", "ours"), help="print the bytes that one forward of this one needs")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with torch.inference_mode():
        theirs, ours = networks(args.authors.resolve(), args.backbone, args.precision)
        if args.only:
            inputs, steps = draw_inputs(0), args.steps[-1]
            forward = {
                "theirs": lambda: their_logits(theirs, inputs, steps),
                "ours": lambda: our_logits(ours, inputs, steps),
            }
            print(peak_memory(forward[args.only]))
            return 0
        by_steps = {n: compare(theirs, ours, n, args.rounds) for n in args.steps}
        result: dict[str, Any] = {
            **machine(), "backbone": args.backbone, "precision": args.precision, "rounds": args.rounds,
            "peak_gflops": peak_gflops(args.precision), "steps": by_steps,
            "reuse": reuse(ours, max(args.steps), max(1, args.rounds // 2)),
        }  # fmt: skip
    for n, measured in by_steps.items():
        measured |= {f"{who}_bytes": memory_of(who, args, n) for who in ("theirs", "ours")}
    if len(by_steps) > 1:
        first, last = by_steps[min(by_steps)], by_steps[max(by_steps)]
        further = {who: last[f"{who}_seconds"] - first[f"{who}_seconds"] for who in ("theirs", "ours")}
        result["further_step_share"] = further["ours"] / further["theirs"]
    print(table(result))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    wrong = [n for n, measured in by_steps.items() if not measured["deviation"] <= TOLERANCE[args.precision]]
    if wrong:
        print(f"The logits differ by more than {TOLERANCE[args.precision]:g} of the largest at steps {wrong}.")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
