"""`make bench`: ratios of speed against named peers, as one table and as `runs/bench.json`. A report, not a test."""

import argparse
import importlib
import importlib.util
import os
import platform
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from bamboo.files import write_json

PARTS = (
    *("training", "data", "sources", "analysis", "finetune", "kv_compression", "dape"),
    *("came", "tokenize", "text", "positions", "glue"),
)
"""Each is a function `bench_PART` in a module of that name, which gives numbers by name."""

Result = Mapping[str, float]


class Line(NamedTuple):
    """One line of the table: its name, and under which keys of a result its numbers are found, if it has them.

    `target` is the least that `ratio` should be, or with `at_most` the most.
    """

    name: str
    ratio: str = ""
    ours: str = ""
    peer: str = ""
    target: float | None = None
    at_most: bool = False

    def verdict(self, result: Result) -> str:
        """`met` or `not met`; nothing where there is no target."""
        if self.target is None or self.ratio not in result:
            return ""
        ratio = result[self.ratio]
        return "met" if (ratio <= self.target if self.at_most else ratio >= self.target) else "not met"


def training_lines() -> Iterator[Line]:
    """A step against that of transformers' ViTMAE, in seconds, and the share of the machine's peak that it reaches."""
    variants = {"mae": "exact MAE", "half": "predict_ratio 0.5", "cross": "cross, predict_ratio 0.25"}
    targets = {"mae": {"fp32": 1.1, "bf16": 1.0}, "half": dict.fromkeys(("fp32", "bf16"), 1.5)}
    targets["cross"] = dict.fromkeys(("fp32", "bf16"), 2.0)
    for shape, measured in (("vit-small", tuple(variants)), ("vit-base", ("mae",)), ("bamboo-base", ("mae",))):
        for precision in ("fp32", "bf16"):
            key = f"{shape}_{precision}"
            for variant in measured:
                name, ours = f"step, {shape}, {precision}, {variants[variant]} (s)", f"{key}_{variant}"
                target = targets[variant][precision]
                yield Line(name, f"{ours}_ratio", f"{ours}_seconds", f"{key}_peer_seconds", target)
            peak = f"peak_{precision}_gflops"
            yield Line(
                f"share of peak, {shape}, {precision} (GFLOP/s)", f"{key}_share_of_peak", f"{key}_gflops_per_s", peak
            )
        yield Line(f"FLOPs of a step, {shape} (GFLOP)", ours=f"{shape}_fp32_gflops")


def came_lines() -> Iterator[Line]:
    """A step of CAME and its state, in MB, over those of torch's optimizers."""
    for shape in ("bamboo-base", "vit-base"):
        for peer in ("adamw", "adamw_fused", "adafactor", "adafactor_foreach"):
            name, ours, theirs = f"step over {peer}, {shape} (s)", f"{shape}_came_seconds", f"{shape}_{peer}_seconds"
            yield Line(name, f"{shape}_over_{peer}", ours, theirs, 1.0 if peer == "adamw" else None, at_most=True)
        sizes = f"{shape}_state_over_adamw", f"{shape}_came_state_mb", f"{shape}_adamw_state_mb"
        yield Line(f"state over adamw, {shape} (MB)", *sizes, 0.51, at_most=True)
        yield Line(f"state of adafactor, {shape} (MB)", peer=f"{shape}_adafactor_state_mb")


def kv_compression_lines() -> Iterator[Line]:
    """Plain attention over compressed keys and values, in seconds, at each shape and size of images."""
    for shape in ("bamboo-base", "vit-base"):
        for side in (448, 896):
            for which in ("half", "all"):
                for kind in ("inference", "step"):
                    key, target = f"{shape}_{side}_{which}_{kind}", 1.3 if (kind, side) == ("inference", 896) else None
                    name = f"{kind}, {shape}, {side} px, {which} blocks (s)"
                    yield Line(name, f"{key}_gain", f"{key}_seconds", f"{shape}_{side}_plain_{kind}_seconds", target)


def dape_lines() -> Iterator[Line]:
    """A step with DAPE V2 over one with plain attention, in seconds, and what FLOPs say."""
    for shape in ("bamboo-base", "vit-base"):
        for kind, what in (("masked", "49 visible patches"), ("whole", "196 patches")):
            key = f"{shape}_{kind}"
            names = f"{key}_ratio", f"{key}_dape_v2_seconds", f"{key}_plain_seconds"
            yield Line(f"step over plain attention, {shape}, {what} (s)", *names)
            yield Line(f"FLOPs over plain attention, {shape}, {what}", f"{key}_flops_ratio")


def text_lines() -> Iterator[Line]:
    """Real tokens per second of masked language modelling against transformers' recipe, by shape."""
    for name in ("bert-base", "bamboo-base"):
        for peer, what, target in (("joined", "texts joined", 1.1), ("lines", "line by line", 1.8)):
            ours, theirs = f"{name}_tokens_per_s", f"{name}_{peer}_tokens_per_s"
            yield Line(f"tokens/s, {name}, {what}", f"{name}_over_{peer}", ours, theirs, target)


def positions_lines() -> Iterator[Line]:
    """A step with each kind of positions against one with learned positions: its time, and what it keeps in memory."""
    from tests.benchmarks.bench_positions import KINDS

    for name in KINDS:
        target = 2.5 if name.endswith("_dape") else None
        seconds = f"{name}_over_learned", f"{name}_seconds", "learned_seconds"
        yield Line(f"step over learned, {name} (s)", *seconds, target, at_most=True)
        yield Line(f"kept over learned, {name} (MB)", f"{name}_mb_over_learned", f"{name}_mb", "learned_mb")


def glue_lines() -> Iterator[Line]:
    """Examples per second of fine-tuning and evaluation against padding to 128, by task."""
    for task, title, target in (("cola", "CoLA", 3.0), ("sst2", "SST-2", 3.0), ("qnli", "QNLI", 1.8)):
        for stage, what in (("train", "training"), ("eval", "evaluation")):
            ours, peer = f"{task}_ours_{stage}", f"{task}_peer_{stage}"
            yield Line(f"examples/s, {what}, lengths of {title}", f"{task}_{stage}_ratio", ours, peer, target)
        yield Line(f"share of padding, {title}", ours=f"{task}_padding")


FOLDER = "folder_images_per_s"
LINES: dict[str, list[Line]] = {
    "glue": [*glue_lines()],
    "text": [*text_lines()],
    "positions": [*positions_lines()],
    "training": [*training_lines()],
    "data": [
        Line("images/s", "bamboo_over_pil", "bamboo_images_per_s", "pil_images_per_s", 1.8),
        Line("images/s, repeat 2", "bamboo_repeat2_over_pil", "bamboo_repeat2_images_per_s", "pil_images_per_s", 2.5),
    ],
    "sources": [
        *(
            Line(f"images/s, {kind} over folder", f"{kind}_over_folder", f"{kind}_images_per_s", FOLDER, target)
            for kind, target in (("tar", 0.95), ("parquet", 0.95), ("prepared", None))
        ),
        Line("start with 1.28 M images (s)", "start_seconds", target=10, at_most=True),
    ],
    "analysis": [
        Line("token similarity over a plain pass", "cost_similarity", target=1.05, at_most=True),
        Line("all stream measures over a plain pass", "cost_stream", target=1.3, at_most=True),
        Line("default measures over a plain pass", "cost_default"),
        Line("ranks over a plain pass", "cost_ranks"),
        Line("attention measures over a plain pass", "cost_attention"),
        Line("speed over the naive way", "gain_speed", target=10),
        Line("memory over the naive way", "gain_memory", target=20),
        Line("share of training taken by the monitor", "monitor_share", target=0.01, at_most=True),
    ],
    "finetune": [
        Line("fine-tuning step over plain timm, bamboo-base", "step_bamboo-base_over_timm", target=1, at_most=True),
        Line("fine-tuning step over plain timm, vit-base", "step_vit-base_over_timm", target=1, at_most=True),
        Line("nearest neighbours over a forward pass", "knn_over_forward_pass"),
        Line("probe of every layer over a forward pass", "probe_over_forward_pass"),
        Line("epoch of a probe, cached over not", "cached_probe_gain", target=10),
    ],
    "kv_compression": [*kv_compression_lines()],
    "dape": [*dape_lines()],
    "came": [*came_lines()],
    "tokenize": [
        Line(
            "text to corpus over batch encoding (MB/s)",
            *("bamboo_over_tokenizers", "bamboo_mb_per_s", "tokenizers_mb_per_s"),
            target=0.8,
        ),
        Line("peak memory of 48 MB of text (MB)", "peak_mb", target=500, at_most=True),
    ],
}
"""What the table shows of each part; of a part that is not listed it shows every number."""


def measure(part: str) -> dict[str, float] | str:
    """The numbers of a part, or why there are none."""
    name = f"tests.benchmarks.bench_{part}"
    if importlib.util.find_spec(name) is None:
        return "there is no such benchmark yet"
    try:
        return dict(getattr(importlib.import_module(name), f"bench_{part}")())
    except Exception as error:  # one part that breaks leaves the report of the others
        traceback.print_exc()
        return f"failed: {type(error).__name__}: {error}"


def rows(results: Mapping[str, Result]) -> Iterator[tuple[str, ...]]:
    """Cells of the table: name, ours, peer, ratio, target, verdict."""
    for part, result in results.items():
        for line in LINES.get(part) or [Line(key, key) for key in result]:
            numbers = [f"{result[key]:.4g}" if key in result else "" for key in (line.ours, line.peer, line.ratio)]
            if any(numbers):
                target = "" if line.target is None else f"{'<=' if line.at_most else '>='} {line.target:g}"
                yield (f"{part}: {line.name}", *numbers, target, line.verdict(result))


def table(results: Mapping[str, Result]) -> str:
    """All rows under a header, columns aligned."""
    cells = [("", "ours", "peer", "ratio", "target", ""), *rows(results)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    lines = (
        (row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))) for row in cells
    )
    return "\n".join("  ".join(line).rstrip() for line in lines)


def machine() -> dict[str, Any]:
    """Where the numbers come from."""
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Run the parts, print the table and write the JSON."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--only", choices=PARTS, help="run one part alone")
    parser.add_argument("--out", type=Path, default=Path("runs/bench.json"), help="where the numbers go")
    arguments = parser.parse_args(argv)
    results: dict[str, dict[str, float]] = {}
    skipped: dict[str, str] = {}
    for part in [arguments.only] if arguments.only else PARTS:
        print(f"{part} ...", flush=True)
        start, found = time.perf_counter(), measure(part)
        if isinstance(found, str):
            skipped[part] = found
        else:
            results[part] = found
        print(f"{part}: {found if isinstance(found, str) else f'{time.perf_counter() - start:.0f} s'}", flush=True)
    write_json(arguments.out, {"machine": machine(), "results": results, "skipped": skipped})
    print(f"\n{table(results)}\n\n{arguments.out}")


if __name__ == "__main__":
    main()
