"""The `vidtok-plugin` command."""

import argparse
from collections.abc import Sequence

from vidtok_plugin.commands import add_command, add_config_arguments, config_from, run_command


def fit(args: argparse.Namespace) -> None:
    import lightning.pytorch as pl

    from vidtok_plugin import training
    from vidtok_plugin.tokenizer.module import TokenizerModule, TokenizerRunConfig
    from vidtok_plugin.video.data import VideoDataModule

    cfg = config_from(args, TokenizerRunConfig)
    pl.seed_everything(cfg.seed, workers=True)
    module = TokenizerModule(cfg)
    training.fit(cfg, module, VideoDataModule(cfg.data))
    module.tokenizer.save_pretrained(cfg.output / "model")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vidtok-plugin", description="Train and use VidTok video tokenizers.")
    commands = parser.add_subparsers(metavar="COMMAND")
    add_config_arguments(add_command(commands, "fit", fit, "train or fine-tune a tokenizer"))
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(build_parser(), argv)
