"""IMR-HSNet against the authors' code: the same weights and inputs, in turns, on this machine.

    python benchmarks/against_authors.py --authors IMR-HSNet --json out.json
    python benchmarks/against_authors.py --authors IMR-HSNet --device cuda --precision float16 --launch graphs --batch 8

Takes a checkout of github.com/Whileherham/IMR-HSNet, which is neither shipped nor needed otherwise.
Each round runs theirs and ours one after the other; what counts is the ratio within a round, since
other work on the machine slows both. Only the network is timed: two pictures of 400 x 400 and their
coarse masks in, logits of both pictures out. ``--batch`` adds the throughput of several pairs at once.
In float32 neither may round to TF32 on a GPU; beside a lower precision of ours theirs may, as PyTorch has it.

Each stage of ours is set beside what this machine could do: its operations at the rate of a convolution, or the
bytes that its operators read and write at the rate of a copy, whichever takes longer.
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from measure import bandwidth, best, flops, in_turns, machine, peak_gflops, peak_memory, traffic
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from imrseg.models import IMRHSNet
from imrseg.models.graphs import GraphedStep, cuda_capture
from imrseg.models.hsnet import SIDE, STRIDE
from imrseg.models.refiner import Prepared, RefinerState
from imrseg.segmenter import pick_device

TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2, "float16": 2e-2}  # of the largest logit
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


class Ours:
    """Our network with their weights, in a precision and launched in a way."""

    def __init__(self, net: IMRHSNet, precision: str, launch: str) -> None:
        self.net = net
        if precision != "float32":
            net.refiner.lower(getattr(torch, precision))
        self.step = GraphedStep(net.refiner.step, cuda_capture) if launch == "graphs" else net.refiner.step

    def refine(self, state: RefinerState, steps: int) -> Tensor:
        for _ in range(steps):
            state = self.step(state)
        assert state.logits is not None
        return state.logits

    def logits(self, inputs: Inputs, steps: int) -> Tensor:
        return self.refine(self.net.start(*inputs), steps)


def networks(args: argparse.Namespace) -> tuple[Any, Ours]:
    torch.manual_seed(0)
    theirs = authors_network(args.authors.resolve(), args.backbone)
    net = IMRHSNet(args.backbone, authors_compatible=True).eval()
    net.load_authors_state_dict(theirs.state_dict())
    return theirs.to(args.device), Ours(net.fuse().to(args.device), args.precision, args.launch)


def draw_inputs(seed: int, device: torch.device, batch: int = 1) -> Inputs:
    rng = torch.Generator().manual_seed(seed)
    pictures = [torch.randn(batch, 3, SIDE, SIDE, generator=rng) for _ in range(2)]
    masks = [torch.randn(batch, 1, SIDE // STRIDE, SIDE // STRIDE, generator=rng).relu() for _ in range(2)]
    query, support, *masks = (x.to(device) for x in (*pictures, *(m / m.amax((1, 2, 3), keepdim=True) for m in masks)))
    return query, support, masks[0], masks[1]


def compare(theirs: Any, ours: Ours, steps: int, rounds: int, device: torch.device, batch: int = 1) -> dict[str, Any]:
    """Deviation, share of other pixels, medians in seconds and the median ratio, for a number of steps."""
    inputs = draw_inputs(steps, device, batch)
    runs = [lambda: their_logits(theirs, inputs, steps), lambda: ours.logits(inputs, steps)]
    wanted, got = (run() for run in runs)
    times = in_turns(runs, rounds, device)
    return {
        "batch": batch,
        "deviation": float((got - wanted).abs().max() / wanted.abs().max()),
        "other_pixels": float((got.argmax(1) != wanted.argmax(1)).float().mean()),
        "theirs_seconds": median(times[0]),
        "ours_seconds": median(times[1]),
        "ratio": median(a / b for a, b in zip(*times, strict=True)),
        "theirs_gflop": flops(runs[0]),
        "ours_gflop": flops(lambda: ours.net(*inputs, steps)),  # no graph: its kernels cannot be counted
    }


def reuse(ours: Ours, steps: int, rounds: int, device: torch.device) -> dict[str, Any]:
    """What five supports and a second label on the same pictures cost, against one run."""
    net, inputs = ours.net, draw_inputs(0, device)
    query, _, query_mask, support_mask = inputs
    supports = torch.cat([draw_inputs(k, device)[1] for k in range(SHOTS)])
    known = net.prepare(*inputs[:2])

    def shots() -> None:  # as a Segmenter does: pictures at once, then pairs one by one
        features = [layer.split(1) for layer in net.backbone(torch.cat([query, supports]))]
        first: Prepared | None = None
        for k in range(1, 1 + SHOTS):
            pair = net.refiner.prepare([layer[0] for layer in features], [layer[k] for layer in features], first)
            first = first or pair
            ours.refine(net.refiner.begin(pair, query_mask, support_mask), steps)

    def again() -> None:
        ours.refine(net.refiner.begin(known, query_mask, support_mask), steps)

    one, five, label = in_turns([lambda: ours.logits(inputs, steps), shots, again], rounds, device)
    return {
        "steps": steps,
        f"{SHOTS}_shots_over_one": median(b / a for a, b in zip(one, five, strict=True)),
        "second_label_over_first": median(b / a for a, b in zip(one, label, strict=True)),
    }


def stages(ours: Ours, precision: str, device: torch.device) -> dict[str, dict[str, Any]]:
    """Each stage's seconds, and those that this machine would need at its limits."""
    net, (query, support, *masks) = ours.net, draw_inputs(0, device)
    features = net.backbone(query), net.backbone(support)
    known = net.refiner.prepare(*features)
    state = net.refiner.step(net.refiner.begin(known, masks[0], masks[1]))
    runs: dict[str, tuple[Callable[[], Any], Callable[[], Any], str]] = {  # as it runs, as it is counted, precision
        "a backbone": (lambda: net.backbone(query),) * 2 + ("float32",),
        "preparing a pair": (lambda: net.refiner.prepare(*features),) * 2 + (precision,),
        "a step": (lambda: ours.step(state), lambda: net.refiner.step(state), precision),
    }
    rate, out = bandwidth(device), {}
    for name, (run, counted, dtype) in runs.items():
        compute, memory = flops(counted) / peak_gflops(dtype, device), traffic(counted) / rate
        taken = best(run, device)
        out[name] = {
            "seconds": taken, "compute_seconds": compute, "memory_seconds": memory,
            "share": max(compute, memory) / taken, "limit": "compute" if compute > memory else "memory",
        }  # fmt: skip
    return out


def memory_of(which: str, args: argparse.Namespace, steps: int) -> int:
    """``peak_memory`` of one forward, in a process of its own."""
    command = [sys.executable, __file__, "--authors", str(args.authors), "--backbone", args.backbone,
               "--device", str(args.device), "--threads", str(args.threads), "--precision", args.precision,
               "--launch", args.launch, "--steps", str(steps), "--only", which]  # fmt: skip
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def table(result: dict[str, Any]) -> str:
    """The result for the terminal."""
    where = result["gpu"] or f"{result['threads']} threads"
    lines = [
        f"{result['backbone']}, {result['precision']}, {where}, torch {result['torch']};"
        f" convolutions reach {result['peak_gflops']:.0f} GFLOP/s",
        "steps batch   theirs     ours    ratio   deviation   other pixels   GFLOP theirs/ours   ours of the peak   MB theirs/ours",
    ]
    for name, r in [*result["steps"].items(), *([] if result["batched"] is None else [("", result["batched"])])]:
        share = r["ours_gflop"] / r["ours_seconds"] / result["peak_gflops"]
        memory = f"{r['theirs_bytes'] / 1e6:.0f} / {r['ours_bytes'] / 1e6:.0f}" if "ours_bytes" in r else ""
        lines.append(
            f"{name:>5} {r['batch']:5} {r['theirs_seconds']:7.3f} s {r['ours_seconds']:6.3f} s {r['ratio']:7.2f}x"
            f" {r['deviation']:11.1e} {r['other_pixels']:14.4%} {r['theirs_gflop']:12.0f} / {r['ours_gflop']:.0f}"
            f" {share:17.0%} {memory:>17}"
        )
    if "further_step_share" in result:
        lines.append(f"a further step of ours takes {result['further_step_share']:.2f} of one of theirs")
    reused = result["reuse"]
    lines.append(
        f"{reused['steps']} steps: {SHOTS} shots take {reused[f'{SHOTS}_shots_over_one']:.2f} times one,"
        f" a second label {reused['second_label_over_first']:.2f} of the first"
    )
    for name, r in result["stages"].items():
        lines.append(
            f"{name}: {1000 * r['seconds']:.1f} ms; at the machine's limits compute takes"
            f" {1000 * r['compute_seconds']:.1f} ms, memory {1000 * r['memory_seconds']:.1f} ms:"
            f" {r['share']:.0%} of its {r['limit']}"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--authors", type=Path, required=True, help="their checkout, with model/hsnet_imr.py")
    parser.add_argument("--backbone", choices=BACKBONES, default="resnet50")
    parser.add_argument("--device", type=pick_device, default=pick_device("cpu"))
    parser.add_argument("--precision", choices=TOLERANCE, default="float32", help="of our network")
    parser.add_argument("--launch", choices=("eager", "graphs"), default="eager", help="of our network's steps")
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--batch", type=int, default=1, help="pairs at once, for the throughput")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, help="write the result here too")
    parser.add_argument("--only", choices=("theirs", "ours"), help="print the bytes that one forward of this one needs")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.precision == "float32":  # else a GPU rounds what it convolves to ten bits, coarser than the tolerance
        torch.backends.cudnn.conv.fp32_precision = "ieee"
    device, most = args.device, max(args.steps)
    with torch.inference_mode():
        theirs, ours = networks(args)
        if args.only:
            inputs = draw_inputs(0, device)
            run = {"theirs": lambda: their_logits(theirs, inputs, most), "ours": lambda: ours.logits(inputs, most)}
            print(peak_memory(run[args.only], device))
            return 0
        by_steps = {n: compare(theirs, ours, n, args.rounds, device) for n in args.steps}
        batched = compare(theirs, ours, most, args.rounds, device, args.batch) if args.batch > 1 else None
        result: dict[str, Any] = {
            **machine(device), "backbone": args.backbone, "precision": args.precision, "launch": args.launch,
            "rounds": args.rounds, "peak_gflops": peak_gflops(args.precision, device),
            "bandwidth_gb": bandwidth(device), "steps": by_steps, "batched": batched,
            "reuse": reuse(ours, most, max(1, args.rounds // 2), device),
            "stages": stages(ours, args.precision, device),
        }  # fmt: skip
    for n, measured in by_steps.items():
        measured |= {f"{who}_bytes": memory_of(who, args, n) for who in ("theirs", "ours")}
    if len(by_steps) > 1:
        first, last = by_steps[min(by_steps)], by_steps[most]
        further = {who: last[f"{who}_seconds"] - first[f"{who}_seconds"] for who in ("theirs", "ours")}
        result["further_step_share"] = further["ours"] / further["theirs"]
    print(table(result))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    compared = [*by_steps.values(), *([batched] if batched else [])]
    if all(measured["deviation"] <= TOLERANCE[args.precision] for measured in compared):
        return 0
    print(f"The logits differ by more than {TOLERANCE[args.precision]:g} of the largest.")
    return 1


if __name__ == "__main__":
    sys.exit(main())
