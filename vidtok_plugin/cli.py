"""The `vidtok-plugin` command: it only wires; heavy imports wait until a command needs them."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from vidtok_plugin.common.commands import add_command, add_config_arguments, config_from, run_command

if TYPE_CHECKING:
    from vidtok_plugin.adapter.adapter import TokenizerAdapter
    from vidtok_plugin.common.processes import Process
    from vidtok_plugin.store.tokenize import WrittenShards


def list_presets(args: argparse.Namespace) -> None:
    from vidtok_plugin.tokenizer.model import count_parameters
    from vidtok_plugin.tokenizer.presets import HUB_REPOSITORY, presets

    table = Table(
        *("preset", "regularizer", "causal", "t x h x w", "latents of 17x256x256", "parameters"),
        *("PSNR", "SSIM", "LPIPS", "FVD", "checkpoint"),
        caption=f"Checkpoints are files of https://huggingface.co/{HUB_REPOSITORY}; quality as published.",
    )
    for preset in presets().values():
        arch, metrics = preset.architecture, preset.metrics
        table.add_row(
            preset.name,
            f"FSQ, {arch.codebook_size} codes" if arch.codebook_size else f"KL, {arch.latent_channels} channels",
            f"v{arch.version}" if arch.causal else "no",
            "x".join(map(str, preset.compression)),
            "x".join(map(str, preset.latent_shape())),
            f"{count_parameters(arch) / 1e6:.1f} M",
            *(
                ["-"] * 4
                if metrics is None
                else [f"{metrics.psnr:.2f}", f"{metrics.ssim:.3f}", f"{metrics.lpips:.3f}", f"{metrics.fvd:.1f}"]
            ),
            preset.checkpoint or "in this package",
        )
    # As wide as the table, also where the output is no terminal, so that no name is cut.
    Console(width=None if sys.stdout.isatty() else 220).print(table)


def fit(args: argparse.Namespace) -> None:
    from vidtok_plugin.tokenizer.training.module import TokenizerRunConfig
    from vidtok_plugin.tokenizer.training.runs import fit_tokenizer

    fit_tokenizer(config_from(args, TokenizerRunConfig))


def validate(args: argparse.Namespace) -> None:
    from vidtok_plugin.tokenizer.training.module import TokenizerRunConfig
    from vidtok_plugin.tokenizer.training.runs import validate_tokenizer

    validate_tokenizer(config_from(args, TokenizerRunConfig))


def reconstruct(args: argparse.Namespace) -> None:
    from vidtok_plugin.common.devices import default_device
    from vidtok_plugin.tokenizer.model import VidTok
    from vidtok_plugin.tokenizer.reconstruction.reconstruct import reconstruct_video

    tokenizer = VidTok.from_pretrained(args.model, preset=args.preset).to(default_device())
    result = reconstruct_video(
        tokenizer,
        args.video,
        args.output,
        fit=args.fit,
        side_by_side=args.side_by_side,
        memory=args.memory,
        progress=True,
    )
    print(f"{args.output}: {result.num_frames} frames, PSNR {result.psnr:.2f} dB")
    if result.seam is not None:
        print(
            f"{result.num_tiles} tiles of {result.tile_height} x {result.tile_width} (height x width), which differ by "
            f"{result.seam:.1f} levels of 255 where they overlap, before they are blended"
        )


def tokenize(args: argparse.Namespace) -> None:
    from vidtok_plugin.common.processes import launched_process, run_processes
    from vidtok_plugin.video.episodes import find_videos

    process = launched_process()
    if args.processes < 1:
        raise ValueError(f"tokenize: --processes must be at least 1, got {args.processes}.")
    if args.processes > 1 and process.world_size > 1:
        raise ValueError(
            f"tokenize: --processes must be left out under a launcher, which has set WORLD_SIZE={process.world_size}; "
            "tell the launcher how many to start."
        )
    videos = find_videos(args.folder)  # before anything is started
    if args.processes > 1:
        adapter_of(args, videos)  # once and with all threads, if statistics are to be fitted
        run_processes(tokenize_share, args.processes, args, show_traceback=args.traceback)
        print_store(args)
        return
    shards = tokenize_share(process, args)
    if process.world_size > 1:
        print(f"{args.output}: {process} wrote {len(shards.written)} shards; still missing: {len(shards.missing)}")
    if not shards.missing:
        print_store(args)


def adapter_of(args: argparse.Namespace, videos: "Sequence[Path]", local_rank: int | None = None) -> "TokenizerAdapter":
    """The adapter that `tokenize` writes with, the same in all processes."""
    from vidtok_plugin.common.devices import default_device
    from vidtok_plugin.store.adapter import agree_on_statistics, load_adapter

    patch_size = None if args.patch_size is None else tuple(args.patch_size)
    adapter = load_adapter(args.model, preset=args.preset, patch_size=patch_size).to(default_device(local_rank))
    agree_on_statistics(adapter, videos, args.output, clips=args.statistics_clips)
    return adapter


def tokenize_share(process: "Process", args: argparse.Namespace) -> "WrittenShards":
    """One process's part of `tokenize`."""
    import torch

    from vidtok_plugin.store.tokenize import TokenizeConfig, write_shards
    from vidtok_plugin.video.episodes import actions_path, find_videos, load_episode

    if args.processes > 1 and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // args.processes))
    videos = find_videos(args.folder)
    episodes = [load_episode(path) if actions_path(path).exists() else path for path in videos]
    adapter = adapter_of(args, videos, process.local_rank if process.world_size > 1 else None)
    config = TokenizeConfig(
        split=args.split,
        root=args.folder,
        episodes_per_shard=args.episodes_per_shard,
        update=args.update,
        progress=True,
    )
    return write_shards(adapter, episodes, args.output, config, process)


def print_store(args: argparse.Namespace) -> None:
    from vidtok_plugin.store.reader import TokenStore
    from vidtok_plugin.store.writer import unfinished_update

    if args.update and unfinished_update(args.output):
        print(f"{args.output}: the update is unfinished; until then the store serves the previous tokens")
        return
    store = TokenStore(args.output, args.split)
    print(f"{args.output}: {len(store)} episodes, {store.num_tokens} tokens")


def convert(args: argparse.Namespace) -> None:
    from vidtok_plugin.tokenizer.weights import conversion

    print(conversion.convert(args.source, args.output, to=args.to, preset=args.preset))


def evaluate(args: argparse.Namespace) -> None:
    from dataclasses import replace

    from vidtok_plugin.common.devices import default_device
    from vidtok_plugin.evaluation import evaluate
    from vidtok_plugin.evaluation.networks import load_metric_networks
    from vidtok_plugin.tokenizer.model import VidTok
    from vidtok_plugin.video.episodes import find_videos

    find_videos(args.folder)  # before anything large is loaded
    output = args.output or evaluate.default_output(args.model, args.folder)
    device = default_device()
    tokenizer = VidTok.from_pretrained(args.model, preset=args.preset).to(device)
    chosen = {name: getattr(args, name) for name in ("protocol", "fps", "size", "clip_frames")}
    cfg = replace(evaluate.published_protocol(tokenizer), **{k: v for k, v in chosen.items() if v is not None})
    evaluate.check_fits(tokenizer, cfg, with_fvd=args.i3d is not None)  # before a long download
    report = evaluate.evaluate(
        tokenizer,
        args.folder,
        output,
        model=args.model,
        cfg=cfg,
        networks=load_metric_networks(device, vgg=args.lpips_vgg, i3d=args.i3d),
        skip_unreadable=args.skip_unreadable,
        progress=True,
    )
    # As wide as the table, also where the output is no terminal.
    Console(width=None if sys.stdout.isatty() else 200).print(report.table())
    print("\n".join([*report.notes(), str(output / "metrics.json")]))


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vidtok-plugin", description="Train and use VidTok video tokenizers.")
    commands = parser.add_subparsers(metavar="COMMAND")
    add_command(commands, "presets", list_presets, "list the published models and the one in this package")
    add_config_arguments(add_command(commands, "fit", fit, "train or fine-tune a tokenizer"))
    add_config_arguments(add_command(commands, "validate", validate, "score a run's last checkpoint"))

    command = add_command(commands, "reconstruct", reconstruct, "encode and decode a video")
    command.add_argument("video", type=Path)
    add_model_arguments(command)
    command.add_argument("--output", type=Path, required=True, metavar="out.mp4")
    command.add_argument(
        "--fit",
        choices=("pad", "crop"),
        help="what to do with frames whose size the tokenizer can't take: fill them up, and cut that off again,"
        " or cut their middle out",
    )
    command.add_argument("--side-by-side", action="store_true", help="write the original too, on the left")
    command.add_argument(
        "--memory", type=float, metavar="GB", help="memory to take beside the model; larger frames go through tiles"
    )

    command = add_command(commands, "evaluate", evaluate, "score reconstructions of a folder of videos")
    command.add_argument("folder", type=Path)
    add_model_arguments(command)
    command.add_argument(
        "--output", type=Path, metavar="FOLDER", help="a stopped evaluation goes on there (default: runs/evaluate/...)"
    )
    command.add_argument(
        "--protocol", choices=("clips", "whole"), help="clips on their own, or streams (default: whole for v1.1)"
    )
    command.add_argument("--fps", type=float, help="every k-th frame, down to about this rate (default: 30)")
    command.add_argument("--size", type=int, metavar="PIXELS", help="height and width (default: 256)")
    command.add_argument("--clip-frames", type=int, metavar="N", help="default: 17, or 16 for a non-causal model")
    command.add_argument(
        "--lpips-vgg",
        type=Path,
        metavar="FILE",
        help="for LPIPS: torchvision's VGG16 or a VidTok checkpoint (default: torch hub's cache, else a download)",
    )
    command.add_argument("--i3d", type=Path, metavar="FILE", help="I3D in TorchScript, for FVD")
    command.add_argument(
        "--skip-unreadable", action="store_true", help="leave damaged videos out and list them, up to half of all"
    )

    command = add_command(commands, "tokenize", tokenize, "write the tokens of a folder of videos into a store")
    command.add_argument("folder", type=Path)
    add_model_arguments(command, "; or an adapter's folder, written by TokenizerAdapter.save_pretrained")
    command.add_argument("--output", type=Path, required=True, metavar="STORE")
    command.add_argument("--split", default="train", help="the store's split to write to (default: train)")
    command.add_argument(
        "--processes", type=int, default=1, metavar="N", help="share the work among N processes (default: 1)"
    )
    command.add_argument(
        "--episodes-per-shard", type=int, default=32, metavar="N", help="each process writes whole shards (default: 32)"
    )
    command.add_argument(
        "--update",
        action="store_true",
        help="redo what another tokenizer wrote, and episodes whose files have changed; run it for each split",
    )
    command.add_argument(
        "--patch-size",
        type=int,
        nargs=2,
        metavar=("ROWS", "COLUMNS"),
        help="latents that make a token of a KL model (default: 1 1)",
    )
    command.add_argument(
        "--statistics-clips",
        type=int,
        default=64,
        metavar="N",
        help="clips to fit a KL model's latent statistics on, unless --model or the store has some (default: 64)",
    )

    command = add_command(commands, "convert", convert, "write weights in another layout")
    command.add_argument(
        "source", metavar="CKPT", help="a weights file, a folder (ours or diffusers') or a preset's name"
    )
    command.add_argument("--preset", help="the preset of a bare weights file")
    command.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    command.add_argument(
        "--to",
        choices=["ours", "published", "diffusers"],
        default="ours",
        help="ours: for VidTok.from_pretrained (default); published: a .ckpt as the published ones; "
        "diffusers: for AutoencoderVidTok.from_pretrained (v1.1 and non-causal models)",
    )
    return parser


def add_model_arguments(parser: argparse.ArgumentParser, or_else: str = "") -> None:
    parser.add_argument("--model", required=True, help=f"a preset's name, a folder or a weights file{or_else}")
    parser.add_argument("--preset", help="the preset of a bare weights file")


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(build_parser(), argv)
