"""The `vidtok-plugin` command. Each command imports what it needs only when it runs."""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vidtok_plugin.common.commands import (
    add_command,
    add_config_arguments,
    add_full_color,
    add_push_arguments,
    command_line,
    config_from,
    path_argument,
    print_json,
    print_table,
    push_options,
    run_command,
    say,
)

if TYPE_CHECKING:
    from vidtok_plugin.common.commands import Commands

RECORDINGS = "a folder of videos, a LeRobot dataset, or another source of docs/recordings.md"


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(build_parser(), argv)


def build_parser() -> argparse.ArgumentParser:
    parser, commands = command_line(
        "vidtok-plugin",
        "Train and use VidTok video tokenizers.",
        "vidtok-plugin reconstruct film.mp4 --model vidtok_tiny --output out.mp4 --fit pad",
        "vidtok-plugin tokenize my_videos --model vidtok_tiny --output runs/tokens",
        "vidtok-plugin tokenize --help",
    )
    add_command(
        commands,
        "presets",
        run_presets,
        "list the published models and the one in this package",
        "vidtok-plugin presets",
        "vidtok-plugin presets --json",
        table=True,
    )
    fit = add_command(
        commands,
        "fit",
        run_fit,
        "train or fine-tune a tokenizer",
        "vidtok-plugin fit --config finetune data.train=my_videos data.validation=my_held_out_videos",
        "vidtok-plugin fit --config finetune trainer.max_steps=2000 --print-config",
    )
    add_config_arguments(fit, "tokenizer")
    validate = add_command(
        commands,
        "validate",
        run_validate,
        "evaluate the last checkpoint of a run",
        "vidtok-plugin validate --config runs/finetune/config.yaml --json",
        table=True,
    )
    add_config_arguments(validate, "tokenizer")
    add_reconstruct(commands)
    add_evaluate(commands)
    add_tokenize(commands)
    add_check(commands)
    add_convert(commands)
    add_push(commands)
    add_shipped(commands)
    return parser


def run_presets(args: argparse.Namespace) -> None:
    from vidtok_plugin.tokenizer.presets_table import presets_json, presets_table

    if args.json:
        print_json(presets_json())
    else:
        print_table(presets_table(), width=220)


def run_fit(args: argparse.Namespace) -> None:
    from vidtok_plugin.tokenizer.training.module import TokenizerRunConfig
    from vidtok_plugin.tokenizer.training.runs import fit_tokenizer

    fit_tokenizer(config_from(args, TokenizerRunConfig), progress=not args.quiet)


def run_validate(args: argparse.Namespace) -> None:
    from vidtok_plugin.tokenizer.training.module import TokenizerRunConfig
    from vidtok_plugin.tokenizer.training.runs import validate_tokenizer

    cfg = config_from(args, TokenizerRunConfig)
    metrics = validate_tokenizer(cfg, progress=not args.quiet, table=not args.json)
    if args.json:
        print_json({name: value if math.isfinite(value) else None for name, value in metrics.items()})


def add_reconstruct(commands: "Commands") -> None:
    command = add_command(
        commands,
        "reconstruct",
        run_reconstruct,
        "encode and decode a video",
        "vidtok-plugin reconstruct film.mp4 --model vidtok_tiny --output out.mp4 --fit pad --side-by-side",
        "vidtok-plugin reconstruct film.mp4 --model vidtok_kl_causal_488_4chn --output out.mp4 --fit crop --memory 4",
    )
    command.add_argument("video", type=path_argument, help="the video file")
    add_model_arguments(command)
    command.add_argument("--output", type=path_argument, required=True, metavar="out.mp4", help="the video to write")
    command.add_argument(
        "--fit",
        choices=("pad", "crop"),
        help="for frames whose size the tokenizer does not support: pad them for the tokenizer only, or center-crop",
    )
    command.add_argument("--side-by-side", action="store_true", help="write the original on the left")
    command.add_argument(
        "--memory", type=float, metavar="GB", help="memory limit beside the model; larger frames are split into tiles"
    )
    add_full_color(command)


def run_reconstruct(args: argparse.Namespace) -> None:
    from vidtok_plugin.common.devices import default_device
    from vidtok_plugin.tokenizer.model import VidTok
    from vidtok_plugin.tokenizer.reconstruction.reconstruct import reconstruct_video

    result = reconstruct_video(
        VidTok.from_pretrained(args.model, preset=args.preset).to(default_device()),
        args.video,
        args.output,
        fit=args.fit,
        side_by_side=args.side_by_side,
        memory=args.memory,
        full_color=args.full_color,
        progress=not args.quiet,
    )
    say(args, f"{args.output}: {result.num_frames} frames, PSNR {result.psnr:.2f} dB")
    if result.seam is not None:
        say(
            args,
            f"{result.num_tiles} tiles of {result.tile_height} x {result.tile_width} (height x width); before blending,"
            f" they differ by {result.seam:.1f} levels of 255 where they overlap",
        )


def add_evaluate(commands: "Commands") -> None:
    command = add_command(
        commands,
        "evaluate",
        run_evaluate,
        "measure reconstructions of a folder of videos",
        "vidtok-plugin evaluate my_videos --model vidtok_tiny",
        "vidtok-plugin evaluate my_videos --model vidtok_tiny --json > metrics.json",
        table=True,
    )
    add_source(command, f"{RECORDINGS}, searched with its subfolders")
    add_model_arguments(command)
    command.add_argument(
        "--output",
        type=path_argument,
        metavar="FOLDER",
        help="folder for the results; resumes an interrupted evaluation (default: runs/evaluate/...)",
    )
    command.add_argument(
        "--protocol", choices=("clips", "whole"), help="independent clips, or streamed videos (default: whole for v1.1)"
    )
    command.add_argument("--fps", type=float, help="use every k-th frame, for about this rate (default: 30)")
    command.add_argument("--size", type=int, metavar="PIXELS", help="height and width (default: 256)")
    command.add_argument("--clip-frames", type=int, metavar="N", help="default: 17, or 16 for a non-causal model")
    command.add_argument(
        "--lpips-vgg",
        type=path_argument,
        metavar="FILE",
        help="for LPIPS: torchvision's VGG16 or a VidTok checkpoint (default: torch hub's cache, or a download)",
    )
    command.add_argument("--i3d", type=path_argument, metavar="FILE", help="for FVD: I3D in TorchScript")
    command.add_argument(
        "--skip-unreadable", action="store_true", help="skip and list damaged videos, at most half of all"
    )


def run_evaluate(args: argparse.Namespace) -> None:
    from dataclasses import replace

    from vidtok_plugin.common.devices import default_device
    from vidtok_plugin.evaluation import evaluate
    from vidtok_plugin.evaluation.networks import load_metric_networks
    from vidtok_plugin.tokenizer.model import VidTok
    from vidtok_plugin.video.opening import open_videos

    folder = chosen_source(args)
    open_videos(folder, args.camera)  # an empty folder is an error before anything large is loaded
    output = args.output or evaluate.default_output(args.model, args.repo or folder)
    device = default_device()
    tokenizer = VidTok.from_pretrained(args.model, preset=args.preset).to(device)
    chosen = {name: getattr(args, name) for name in ("protocol", "fps", "size", "clip_frames")}
    cfg = replace(evaluate.published_protocol(tokenizer), **{k: v for k, v in chosen.items() if v is not None})
    evaluate.check_fits(tokenizer, cfg, with_fvd=args.i3d is not None)  # before a long download
    report = evaluate.evaluate(
        tokenizer,
        folder,
        output,
        camera=args.camera,
        model=args.model,
        cfg=cfg,
        networks=load_metric_networks(device, vgg=args.lpips_vgg, i3d=args.i3d),
        skip_unreadable=args.skip_unreadable,
        progress=not args.quiet,
    )
    if args.json:
        print_json(report.to_json())
        return
    print_table(report.table(), width=200)
    print("\n".join([*report.notes(), str(output / "metrics.json")]))


def add_tokenize(commands: "Commands") -> None:
    command = add_command(
        commands,
        "tokenize",
        run_tokenize,
        "write the tokens of a folder of videos into a store",
        "vidtok-plugin tokenize my_videos --model vidtok_tiny --output runs/tokens",
        "vidtok-plugin tokenize my_held_out_videos --model vidtok_tiny --output runs/tokens --split validation",
        "vidtok-plugin tokenize --repo lerobot/pusht --model vidtok_tiny --output runs/tokens --size 96 96 --fps 10",
    )
    add_source(command, f"{RECORDINGS}, with or without actions")
    add_model_arguments(command, "; or an adapter's folder, written by TokenizerAdapter.save_pretrained")
    command.add_argument(
        "--output", type=path_argument, required=True, metavar="STORE", help="the store to create or extend"
    )
    command.add_argument("--split", default="train", help="the split of the store to write to (default: train)")
    command.add_argument(
        "--size",
        type=int,
        nargs=2,
        metavar=("H", "W"),
        help="bring all videos to this height and width (default: all must have one size already)",
    )
    command.add_argument(
        "--fit",
        choices=["crop", "pad", "stretch"],
        help="how videos of another shape come to --size: cut to their center (default), on black, or distorted",
    )
    command.add_argument(
        "--fps",
        type=float,
        metavar="R",
        help="bring all videos to this rate (default: all must have one rate already); with actions, every k-th frame",
    )
    command.add_argument(
        "--group-actions",
        choices=["concatenate", "sum"],
        help="of every k-th frame, the k actions: all of them (default), or the sum of continuous ones",
    )
    command.add_argument(
        "--clip-frames",
        type=int,
        metavar="N",
        help="cut each video into clips of 1 + k f frames, encoded each on its own (default: whole videos)",
    )
    command.add_argument(
        "--batch",
        type=int,
        default=1,
        metavar="N",
        help="videos, or clips of them, to encode together: faster on a GPU, more memory, the same codes (default: 1)",
    )
    command.add_argument(
        "--engine",
        choices=["local", "ray"],
        default="local",
        help="this machine (default), or the machines of a Ray cluster; see docs/scale.md",
    )
    command.add_argument(
        "--address", metavar="HOST:PORT", help="of the Ray cluster (default: a Ray of its own on this machine)"
    )
    command.add_argument(
        "--processes",
        type=int,
        metavar="N",
        help="processes to start (default: on a CPU one for each core, or fewer if that is faster or memory short; "
        "with Ray one for each GPU or core)",
    )
    command.add_argument(
        "--episodes-per-shard",
        type=int,
        default=32,
        metavar="N",
        help="episodes in each file of the store (default: 32)",
    )
    command.add_argument(
        "--update",
        action="store_true",
        help="replace the tokens of another tokenizer and of changed files; run once for each split",
    )
    command.add_argument(
        "--return-freed-memory",
        action="store_true",
        help="on a CPU, return the memory that a chunk frees instead of keeping it for the next: slower, less memory",
    )
    command.add_argument(
        "--patch-size",
        type=int,
        nargs=2,
        metavar=("ROWS", "COLUMNS"),
        help="latents per token of a KL model (default: 1 1)",
    )
    command.add_argument(
        "--statistics-clips",
        type=int,
        default=64,
        metavar="N",
        help="number of clips for a KL model's latent statistics, unless --model or the store has them (default: 64)",
    )


def run_tokenize(args: argparse.Namespace) -> None:
    from vidtok_plugin.store.config import TokenizeConfig
    from vidtok_plugin.store.folder import FolderConfig, tokenize_folder

    folder = chosen_source(args)
    cfg = FolderConfig(
        folder=folder,
        output=args.output,
        model=args.model,
        camera=args.camera,
        preset=args.preset,
        patch_size=None if args.patch_size is None else tuple(args.patch_size),
        statistics_clips=args.statistics_clips,
        engine=args.engine,
        address=args.address,
        processes=args.processes,
        tokenize=TokenizeConfig(
            split=args.split,
            root=folder,
            clip_frames=args.clip_frames,
            size=None if args.size is None else tuple(args.size),
            fit=args.fit,
            fps=args.fps,
            group_actions=args.group_actions,
            batch=args.batch,
            episodes_per_shard=args.episodes_per_shard,
            update=args.update,
            keep_freed_memory=not args.return_freed_memory,
            progress=not args.quiet,
        ),
    )
    for line in tokenize_folder(cfg, show_traceback=args.traceback):
        say(args, line)


def add_check(commands: "Commands") -> None:
    command = add_command(
        commands,
        "check",
        run_check,
        "read a token store whole and report what is damaged",
        "vidtok-plugin check runs/tokens",
    )
    command.add_argument(
        "store", type=path_argument, metavar="STORE", help="the store, written by `vidtok-plugin tokenize`"
    )


def run_check(args: argparse.Namespace) -> None:
    from vidtok_plugin.store.check import check_store

    found = check_store(args.store)
    for problem in found.problems:
        print(problem)
    if found.unsigned:
        say(
            args,
            f"{args.store}: {found.unsigned} shards have no checksums, since an earlier version wrote them; only their "
            "sizes and values could be checked",
        )
    if found.problems:
        raise ValueError(f"check: {args.store} must be intact, found {len(found.problems)} problems, listed above.")
    say(args, f"{args.store}: intact: {found.shards} shards, {found.episodes} episodes, {found.steps} steps")


def add_convert(commands: "Commands") -> None:
    command = add_command(
        commands,
        "convert",
        run_convert,
        "write weights in another layout",
        "vidtok-plugin convert vidtok_kl_causal_488_4chn.ckpt --preset vidtok_kl_causal_488_4chn --output my_tokenizer",
    )
    command.add_argument(
        "source", metavar="CKPT", help="a weights file, a folder (ours or diffusers') or a preset's name"
    )
    command.add_argument("--preset", help="the preset of a bare weights file")
    command.add_argument("--output", type=path_argument, required=True, metavar="FOLDER", help="folder to write to")
    command.add_argument(
        "--to",
        choices=["ours", "published", "diffusers"],
        default="ours",
        help="ours: for VidTok.from_pretrained (default); published: a .ckpt like the published ones; "
        "diffusers: for AutoencoderVidTok.from_pretrained (v1.1 and non-causal models)",
    )


def run_convert(args: argparse.Namespace) -> None:
    from vidtok_plugin.tokenizer.weights.conversion import convert

    say(args, str(convert(args.source, args.output, to=args.to, preset=args.preset)))


def add_push(commands: "Commands") -> None:
    command = add_command(
        commands,
        "push",
        run_push,
        "push a saved tokenizer or adapter to the Hugging Face hub",
        "vidtok-plugin push runs/finetune/model user/tokenizer --private",
    )
    command.add_argument("folder", type=path_argument, metavar="FOLDER", help="written by save_pretrained or by a run")
    add_push_arguments(command)


def run_push(args: argparse.Namespace) -> None:
    from vidtok_plugin.adapter.pushing import push_saved

    say(args, push_saved(args.folder, args.repository, push_options(args)))


def add_source(command: argparse.ArgumentParser, help: str) -> None:
    """The recordings that a command takes, here or on the hub, and the camera."""
    command.add_argument("folder", type=path_argument, nargs="?", help=help)
    command.add_argument(
        "--repo", metavar="USER/NAME", help="in place of a folder, a LeRobot dataset on the Hugging Face hub"
    )
    add_camera(command)


def chosen_source(args: argparse.Namespace) -> Path:
    """The folder or URL of the recordings; a dataset on the hub is downloaded."""
    if (args.folder is None) == (args.repo is None):
        given = "neither" if args.folder is None else "both"
        raise ValueError(f"give either a folder of recordings or --repo USER/NAME, got {given}.")
    if args.repo is None:
        folder: Path = args.folder
        return folder
    from vidtok_plugin.video.lerobot.hub import download_dataset

    return download_dataset(args.repo, args.camera)


def add_shipped(commands: "Commands") -> None:
    for kind, what in (
        ("configs", "list the configs that come with the package, or copy them"),
        ("examples", "list the examples that come with the package, or copy them"),
    ):
        command = add_command(
            commands,
            kind,
            run_shipped,
            what,
            f"vidtok-plugin {kind}",
            f"vidtok-plugin {kind} --copy my_{kind}",
            table=True,
        )
        command.add_argument("names", nargs="*", metavar="NAME", help="only these (default: all)")
        command.add_argument("--copy", type=path_argument, metavar="FOLDER", help="copy them into this folder")
        command.set_defaults(kind=kind)


def run_shipped(args: argparse.Namespace) -> None:
    from rich.table import Table

    from vidtok_plugin.common.shipped_files import check_names, copy_shipped, summary

    if args.copy is not None:
        for path in copy_shipped(args.kind, args.copy, args.names):
            say(args, str(path))
        return
    summaries = {name: summary(args.kind, name) for name in check_names(args.kind, args.names)}
    if args.json:
        print_json(summaries)
        return
    table = Table("name", "what it is")
    for name, text in summaries.items():
        table.add_row(name, text)
    print_table(table, width=200)


def add_camera(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--camera",
        "--cameras",
        metavar="KEY",
        help="of a dataset with several; KEY,KEY puts them side by side (default: the only one)",
    )


def add_model_arguments(command: argparse.ArgumentParser, more: str = "") -> None:
    command.add_argument("--model", required=True, help=f"a preset's name, a folder or a weights file{more}")
    command.add_argument("--preset", help="the preset of a bare weights file")
