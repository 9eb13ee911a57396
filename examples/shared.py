"""Shared by the examples: their command line, their training configs, and held-out clips."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from vidtok_plugin.common.commands import run_command, set_command
from vidtok_plugin.common.config import load_config
from vidtok_plugin.common.shipped_files import shipped_folder
from vidtok_plugin.video.clips import ClipDataset
from vidtok_plugin.video.data import VideoDataConfig
from vidtok_plugin.video.sources import find_sources

CONFIGS = shipped_folder("configs")


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """The arguments of most examples: any number of `key=value`."""
    parser.add_argument("overrides", nargs="*", default=[], metavar="key=value", help="override a key of the configs")


def run_example(
    work: Callable[[argparse.Namespace], None],
    argv: Sequence[str] | None,
    *,
    description: str,
    add_arguments: Callable[[argparse.ArgumentParser], None] = add_overrides,
) -> int:
    """Parse the command line and call `work`; -> the exit code, 2 with a one-line error for a user's mistake."""
    parser = argparse.ArgumentParser(description=description)
    set_command(parser, work)
    add_arguments(parser)
    return run_command(parser, argv)


def own_overrides(overrides: Sequence[str], sections: Sequence[str]) -> list[str]:
    """The overrides of the example's own config, without those that start with the name of a section."""
    return [override for override in overrides if not override.startswith(tuple(f"{name}." for name in sections))]


def section_config(
    name: str, schema: type, files: Sequence[str], overrides: Sequence[str], settings: Mapping[str, Any]
) -> Any:
    """The config of a training run: its files, then the example's settings, then the overrides with its prefix."""
    chosen = [f"{key}={value}" for key, value in settings.items()]
    chosen += [override.removeprefix(f"{name}.") for override in overrides if override.startswith(f"{name}.")]
    return load_config(schema, [CONFIGS / file for file in files], chosen)


def held_out_clips(folder: Path, data: VideoDataConfig, max_clips: int) -> list[Tensor]:
    """Clips (3, t, h, w) evenly spaced over the videos in a folder, with the length and size of a run's clips."""
    clips = ClipDataset.every(
        find_sources([str(folder)]),
        clip_length=data.clip_length,
        height=data.height,
        width=data.width,
        max_clips=max_clips,
    )
    return [clips[i] for i in range(len(clips))]
