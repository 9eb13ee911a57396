"""The tokenizer against diffusers' AutoencoderVidTok with the same weights: encode, decode, stream, training step.

    python benchmarks/tokenizer.py                         # the published v1.1 model, 17x128x128 (some minutes)
    python benchmarks/tokenizer.py --work train --sizes 64
    python benchmarks/tokenizer.py --work train --sizes 64 --keep-freed-memory --no-memory   # as our runs do
    python benchmarks/tokenizer.py --scaling docs/tokenizer_cost.png   # how our own model's cost grows

Outputs are compared before anything is timed. Contenders take turns. Times are medians over rounds, and "times the
speed" is the median of the rounds' ratios. Memory is the peak minus what was allocated before, each measured in its own
process. "of matmul" is the arithmetic of the published layers per second, relative to the rate of a float32 matrix
product (bfloat16 with --precision bf16): saved arithmetic counts as speed. Models that diffusers lacks (v1.0 causal
ones) are timed alone.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import product
from pathlib import Path
from typing import Any

import torch
from harness import in_turns, make_parser, matmul_rate, peak_bytes, ratio, report, sharp_memory
from torch import Tensor, nn

from vidtok_plugin import VidTok
from vidtok_plugin.common.devices import default_device
from vidtok_plugin.common.freed_memory import keeping_freed_memory
from vidtok_plugin.tokenizer.reconstruction.memory import LiveBytes
from vidtok_plugin.tokenizer.weights.conversion import convert

PRESET = "vidtok_fsq_causal_488_32768_v1_1"
WORKS = ("encode", "decode", "stream", "train")
Work = Callable[[], Any]


class Contender:
    """A network, and the work for which it is timed."""

    def __init__(self, model: nn.Module, video: Tensor, latents: Tensor, precision: str) -> None:
        self.model, self.video, self.latents = model, video, latents
        self.precision = precision
        self.optimizer: torch.optim.Optimizer | None = None

    def encode(self, video: Tensor) -> Tensor:
        raise NotImplementedError

    def decode(self, latents: Tensor) -> Tensor:
        raise NotImplementedError

    def reconstruct(self, video: Tensor) -> Tensor:
        """With gradients."""
        raise NotImplementedError

    @contextmanager
    def casting(self) -> Iterator[None]:
        with torch.autocast(self.video.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            yield

    def work(self, name: str) -> Work:
        return {"encode": self._encode, "decode": self._decode, "train": self._train}[name]

    def _encode(self) -> Tensor:
        with torch.no_grad(), self.casting():
            return self.encode(self.video)

    def _decode(self) -> Tensor:
        with torch.no_grad(), self.casting():
            return self.decode(self.latents)

    def _train(self) -> None:
        if self.optimizer is None:
            self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-6)
        with self.casting():
            loss = (self.reconstruct(self.video) - self.video).abs().mean()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


class Ours(Contender):
    def encode(self, video: Tensor) -> Tensor:
        return self.model.encode(video).latents

    def decode(self, latents: Tensor) -> Tensor:
        return self.model.decode(latents)

    def reconstruct(self, video: Tensor) -> Tensor:
        return self.model(video).reconstruction

    def work(self, name: str) -> Work:
        return self._stream if name == "stream" else super().work(name)

    @torch.no_grad()
    def _stream(self) -> None:
        """Frame by frame in; frames come out as they become final."""
        with self.casting():
            encoder, decoder = self.model.encoder_stream(), self.model.decoder_stream()
            for frame in self.video.split(1, dim=2):
                latents = encoder.push(frame).latents
                if latents.shape[2]:
                    decoder.push(latents)
            decoder.flush()


class Diffusers(Contender):
    def encode(self, video: Tensor) -> Tensor:
        code = self.model(video, sample_posterior=False, encoder_mode=True)
        return code[0] if isinstance(code, tuple) else code

    def decode(self, latents: Tensor) -> Tensor:
        return self.model.decode(latents)[:, :, -self.video.shape[2] :]

    def reconstruct(self, video: Tensor) -> Tensor:
        return self.model(video, sample_posterior=False).sample[:, :, -video.shape[2] :]


def make(
    name: str, preset: str, *, batch: int, frames: int, size: int, precision: str, device: torch.device
) -> Contender:
    """The contender of that name on the model of `preset` with seeded random weights."""
    torch.manual_seed(0)
    model: nn.Module = VidTok.from_preset(preset).eval()
    video = torch.rand(batch, 3, frames, size, size) * 2 - 1
    arch = model.architecture
    grid = (batch, arch.latent_channels, arch.num_latents(frames), size // arch.spatial_factor)
    latents = torch.rand(*grid, size // arch.spatial_factor) * 2 - 1
    if name.startswith("diffusers"):
        from diffusers import AutoencoderVidTok

        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(Path(folder) / "ours")
            convert(Path(folder) / "ours", Path(folder) / "theirs", to="diffusers")
            model = AutoencoderVidTok.from_pretrained(Path(folder) / "theirs", low_cpu_mem_usage=False).eval()
    kind = Diffusers if name.startswith("diffusers") else Ours
    contender = kind(model.to(device), video.to(device), latents.to(device), precision)
    if name == "ours, compiled":
        contender.model.compile_networks()
    if name == "diffusers, channels_last_3d":
        for parameter in contender.model.parameters():
            if parameter.ndim == 5:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last_3d)
    return contender


def names(preset: str, work: str, device: torch.device) -> list[str]:
    arch = VidTok.from_preset(preset, ch=4).architecture
    peers = ["diffusers"] if arch.version == "1.1" and work != "stream" else []
    if device.type == "cuda":
        peers += ["diffusers, channels_last_3d"] if peers else []
        peers += ["ours, compiled"] if work != "stream" else []
    return ["ours", *peers]


# FLOP of the published 4x8x8 causal models on 17x64x64; other sizes are proportional to the pixels.
AS_PUBLISHED = {"encode": 363e9, "decode": 928e9, "stream": 1291e9, "train": 3 * 1291e9}


def measured_memory(case: dict[str, Any], work: str) -> int:
    """Peak memory of a second call, in its own process."""
    command = [sys.executable, __file__, "--memory-of", json.dumps({"work": work, **case})]
    done = subprocess.run(command, env=sharp_memory(), check=True, capture_output=True, text=True)
    return int(done.stdout.split()[-1])


def memory_of(work: str, threads: int, **case: Any) -> int:
    torch.set_num_threads(threads)
    contender = make(**case, device=default_device())
    contender.work(work)()
    return peak_bytes(contender.work(work))


def compare(ours: Contender, theirs: Contender) -> None:
    """Raises unless the outputs of both agree to rounding."""
    with torch.no_grad(), ours.casting():
        pairs = [(ours.encode(ours.video), theirs.encode(ours.video))]
        pairs.append((ours.decode(ours.latents), theirs.decode(ours.latents)))
    limit = 2e-2 if ours.precision == "bf16" else 2e-4
    for mine, its in pairs:
        error = float((mine.float() - its.float()).abs().mean())
        if not error < limit:
            raise SystemExit(f"the outputs of ours and diffusers differ by {error:g} on average, more than {limit:g}")


def rows_of(
    case: dict[str, Any], works: list[str], rounds: int, rate: float, memory: bool, clock: Callable[[], float]
) -> list[dict[str, Any]]:
    device, rows = default_device(), []
    for work in works:
        contenders = {name: make(name, **case, device=device) for name in names(case["preset"], work, device)}
        if "diffusers" in contenders:
            compare(contenders["ours"], contenders["diffusers"])
        seconds = in_turns({name: one.work(work) for name, one in contenders.items()}, rounds=rounds, clock=clock)
        for name in contenders:
            median = statistics.median(seconds[name])
            row: dict[str, Any] = {"preset": case["preset"], "work": work, "network": name}
            row["video"] = "x".join(str(case[key]) for key in ("batch", "frames", "size", "size"))
            row["seconds"] = median
            row["frames/s"] = case["batch"] * case["frames"] / median
            if "488" in case["preset"] and "_causal" in case["preset"]:
                flops = AS_PUBLISHED[work] * case["batch"] * case["frames"] / 17 * case["size"] ** 2 / 64**2
                row["of matmul"] = flops / median / rate
            if "diffusers" in contenders:
                row["times the speed"] = ratio(seconds["diffusers"], seconds[name])
            if memory:
                row["peak GB"] = measured_memory({"name": name, "threads": torch.get_num_threads(), **case}, work) / 1e9
            rows.append(row)
        del contenders
    return rows


def live_bytes(contender: Contender, work: str) -> int:
    """Peak bytes of live tensors, without the model and its input."""
    held = [*contender.model.parameters(), contender.video, contender.latents]
    with LiveBytes(held) as live:
        contender.work(work)()
    return live.peak


def scaling(preset: str, rounds: int, plot: Path) -> list[dict[str, Any]]:
    """Time and memory of our encode, decode and streams over frames, pixels and batch, with a plot."""
    axes = {
        "frames": [{"batch": 1, "frames": n, "size": 64} for n in (5, 9, 17, 33)],
        "side": [{"batch": 1, "frames": 5, "size": n} for n in (32, 64, 128, 192)],
        "batch": [{"batch": n, "frames": 5, "size": 32} for n in (1, 2, 4, 8)],
    }
    rows = []
    for axis, sizes in axes.items():
        cases = [{"preset": preset, "precision": "32", **size} for size in sizes]
        for work in ("encode", "decode", "stream"):
            contenders = [make("ours", **case, device=default_device()) for case in cases]
            seconds = in_turns({str(i): one.work(work) for i, one in enumerate(contenders)}, rounds=rounds)
            for i, case in enumerate(cases):
                memory = live_bytes(contenders[i], work)
                rows.append(
                    {"axis": axis, "work": work, **case, "seconds": statistics.median(seconds[str(i)])}
                    | {"peak GB": memory / 1e9}
                )
            del contenders
    draw(rows, plot)
    return rows


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    labels = {"frames": "frames of 64x64", "side": "pixels of each of 5 frames", "batch": "clips of 5x32x32"}
    figure, panels = plt.subplots(2, 3, figsize=(11, 6), sharex="col")
    for column, (axis, label) in enumerate(labels.items()):
        for work in ("encode", "decode", "stream"):
            some = [row for row in rows if row["axis"] == axis and row["work"] == work]
            x = [row["size"] ** 2 if axis == "side" else row[axis] for row in some]
            for panel, key in zip(panels[:, column], ("seconds", "peak GB"), strict=True):
                panel.plot(x, [row[key] for row in some], "o-", label=work)
        panels[1, column].set_xlabel(label)
    for panel in panels.flat:  # after all lines are drawn
        panel.set_ylim(bottom=0)
        panel.set_xlim(left=0)
    panels[0, 0].set_ylabel("seconds")
    panels[1, 0].set_ylabel("GB of live tensors beyond the weights")
    panels[0, 0].legend()
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser(__doc__, rounds=3)
    parser.add_argument("--presets", nargs="+", default=[PRESET])
    parser.add_argument("--work", nargs="+", choices=WORKS, default=["encode", "decode", "stream"])
    parser.add_argument("--sizes", nargs="+", type=int, default=[128], help="pixels a side")
    parser.add_argument("--frames", nargs="+", type=int, default=[17])
    parser.add_argument("--batches", nargs="+", type=int, default=[1])
    parser.add_argument("--precision", choices=("32", "bf16"), default="32")
    parser.add_argument("--no-memory", action="store_true", help="don't measure memory")
    parser.add_argument(
        "--keep-freed-memory",
        action="store_true",
        help="don't return freed memory to the system",
    )
    parser.add_argument("--cpu-time", action="store_true", help="CPU time in place of wall time: for busy machines")
    parser.add_argument("--scaling", type=Path, metavar="PNG", help="measure how our cost grows instead, with a plot")
    parser.add_argument("--memory-of", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.memory_of:
        print(memory_of(**args.memory_of))
        return
    torch.set_num_threads(args.threads)
    torch.backends.fp32_precision = "ieee"  # for convolutions on a GPU too
    if args.keep_freed_memory and not args.no_memory:
        parser.error("--keep-freed-memory needs --no-memory: peaks are measured with freed memory returned.")
    if args.scaling:
        report(
            "tokenizer_scaling", scaling(args.presets[0], args.rounds, args.scaling), args.output, rounds=args.rounds
        )
        return
    dtype = torch.bfloat16 if args.precision == "bf16" else torch.float32
    rate = matmul_rate(dtype, default_device(), 2048 if default_device().type == "cpu" else 8192)
    clock = time.process_time if args.cpu_time else time.perf_counter
    rows = []
    for preset, size, frames, batch in product(args.presets, args.sizes, args.frames, args.batches):
        case = {"preset": preset, "batch": batch, "frames": frames, "size": size, "precision": args.precision}
        with keeping_freed_memory() if args.keep_freed_memory else nullcontext():
            rows += rows_of(case, args.work, args.rounds, rate, not args.no_memory, clock)
    more = {"rounds": args.rounds, "precision": args.precision, "matmul FLOP/s": rate}
    more |= {"freed memory is kept": args.keep_freed_memory, "cpu time": args.cpu_time}
    report("tokenizer", rows, args.output, packages=["diffusers"], **more)


if __name__ == "__main__":
    main()
