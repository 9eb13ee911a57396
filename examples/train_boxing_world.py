"""Makes a Boxing world from nothing but the game: `make boxing-world`.

    python examples/train_boxing_world.py [--minutes 480] [key=value ...]

This records play, fine-tunes vidtok_tiny on it, records more, tokenizes it, trains the world model, doubles the play
and trains the world model for longer, doubles it again and trains it for rewards as well, trains it further on its own
draws with several seeds, measures these models on held-out play, trains the tokenizer's decoder further (which changes
no token), and measures and exports the best world. The settings are in `configs/boxing/`. Overrides change world.yaml
or, with the prefix `tokenizer.`, `world_model.`, `longer.`, `outcomes.`, `own_draws.` or `decoder.`, a training config.
The schedules are for the `minutes` of world.yaml, and `--minutes` scales them. An interrupted run continues where it
stopped.

The run works on a copy of the last commit, `tree/` in its output folder, so that work on the repository can go on. It
leaves out uncommitted changes. Delete the copy to continue with a newer commit.
"""

import argparse
import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from boxing_card import write_boxing_card
from boxing_evaluation import PROMPT_FRAMES, evaluate
from boxing_play import BoxingPolicy
from pictures import read_curve
from PIL import Image
from shared import CONFIGS, add_overrides, own_overrides, run_example, section_config
from stages import Stages

from vidtok_plugin import TokenizerAdapter, VidTok
from vidtok_plugin.common.config import load_config, to_dict, to_yaml
from vidtok_plugin.store.config import TokenizeConfig
from vidtok_plugin.store.folder import FolderConfig, tokenize_folder
from vidtok_plugin.tokenizer.training.module import TokenizerRunConfig
from vidtok_plugin.training import RunConfig
from vidtok_plugin.video.episodes import find_episodes, save_episode_files
from vidtok_plugin.video.reading import read_frames
from vidtok_plugin.video.writing import VideoWriter
from world_model import Sampler, WorldModel, WorldModelRunConfig
from world_model.play.real_game import EARLIER_ACTIONS
from world_model.recording.record import SPLITS, RecordConfig, record
from world_model.rollout.worlds import PROMPTS_FOLDER

logger = logging.getLogger("vidtok_plugin.train_boxing_world")
ROOT = CONFIGS.parent
MEASURES = "measures.json"
SHIPPED_PROMPTS, SHIPPED_FUTURE = 8, 128  # clips that come with the world, and the frames after each one's prompt
CONFIG_FILES = {
    "tokenizer": ("tokenizer",),
    "world_model": ("world_model",),
    "longer": ("world_model", "longer"),
    "outcomes": ("world_model", "outcomes"),
    "own_draws": ("world_model", "outcomes", "own_draws"),
    "decoder": ("tokenizer", "decoder"),
}


@dataclass(frozen=True, kw_only=True)
class BoxingConfig:
    """What is recorded and measured, and how long the schedules of the two trainings take."""

    record: RecordConfig
    minutes: float  # that everything takes with the schedules as configured, on two CPU cores
    world_model_episodes: int  # of training play for the world model, which gains more from play than the tokenizer
    longer_episodes: int  # of training play when it trains for longer
    outcomes_episodes: int  # of training play when it also learns rewards
    seeds: tuple[int, ...]  # of the last training, of which the best result is exported
    clip_frames: int  # of the clips that the world model trains on, each tokenized on its own
    prompts: int  # to measure on
    future_frames: int  # to imagine for each prompt
    output: Path = Path("runs/boxing")


def train_boxing_world(args: argparse.Namespace) -> None:
    """All stages, in a copy of the tree."""
    cfg = load_config(
        BoxingConfig, [CONFIGS / "boxing" / "world.yaml"], own_overrides(args.overrides, tuple(CONFIG_FILES))
    )
    out = cfg.output.absolute()
    if (ROOT / ".git").exists():
        run_in_copy(args, out / "tree")
        return
    episodes, tokens, exported = (out / name for name in ("episodes", "tokens", "export"))
    ratio = 1.0 if args.minutes is None else args.minutes / cfg.minutes
    if ratio <= 0:
        raise ValueError(f"train_boxing_world: --minutes must be above 0, got {args.minutes:g}.")
    videos = {"data.train": f"[{episodes}/train]", "data.validation": f"[{episodes}/validation]"}
    stored = {"data.store": tokens, "measures.episodes": episodes / "validation"}
    tokenizer_cfg = training_config("tokenizer", args.overrides, {"output": out / "tokenizer"} | videos, ratio)
    model_cfg = training_config("world_model", args.overrides, {"output": out / "world_model"} | stored, ratio)
    goes_on = {"output": out / "longer", "pretrained": model_cfg.output / "model"} | stored
    longer_cfg = training_config("longer", args.overrides, goes_on, ratio)
    goes_on = {"output": out / "outcomes", "pretrained": longer_cfg.output / "model"} | stored
    outcomes_cfg = training_config("outcomes", args.overrides, goes_on, ratio)
    first = {"pretrained": outcomes_cfg.output / "model"} | stored
    last_cfgs = [
        training_config("own_draws", args.overrides, {"output": out / f"own_draws_{seed}", "seed": seed} | first, ratio)
        for seed in cfg.seeds
    ]
    trained = {"output": out / "decoder", "pretrained": tokenizer_cfg.output / "model"}
    decoder_cfg = training_config("decoder", args.overrides, trained | videos, ratio)
    recording = replace(cfg.record, output=str(episodes))
    more = replace(recording, train_episodes=max(cfg.world_model_episodes, recording.train_episodes))
    much_more = replace(recording, train_episodes=max(cfg.longer_episodes, more.train_episodes))
    most = replace(recording, train_episodes=max(cfg.outcomes_episodes, much_more.train_episodes))
    stages = Stages(out, 14 + 2 * len(last_cfgs))

    def record_stage(name: str, play: RecordConfig, remove: Sequence[Path] = ()) -> None:
        work = partial(record, play, policy=BoxingPolicy)
        stages.run(name, work, inputs=to_dict(play), result=episodes, remove=remove)

    def tokens_stage(name: str, remove: Sequence[Path] = ()) -> None:
        work = partial(tokenize, cfg, tokenizer_cfg.output / "model", episodes, tokens)
        stages.run(name, work, inputs=cfg.clip_frames, result=tokens, remove=remove)

    record_stage("record", recording, remove=[episodes])
    train(stages, "vidtok-plugin", tokenizer_cfg)
    record_stage("record_more", more)
    tokens_stage("tokens", remove=[tokens])
    train(stages, "world-model", model_cfg)
    record_stage("record_much_more", much_more)
    tokens_stage("tokens_much_more")
    train(stages, "world-model", longer_cfg)
    record_stage("record_most", most)
    tokens_stage("tokens_most")
    train(stages, "world-model", outcomes_cfg)
    for last_cfg in last_cfgs:
        train(stages, "world-model", last_cfg)
    chosen_by = None  # the first chooses the sampler for all
    for last_cfg in last_cfgs:
        run, measures = last_cfg.output, last_cfg.output / MEASURES
        stages.run(
            f"measure_{run.name}",
            partial(measure, cfg, run / "model", measures, chosen_by, episodes, tokens),
            inputs=[cfg.prompts, cfg.future_frames],
            result=measures,
        )
        chosen_by = chosen_by or measures
    train(stages, "vidtok-plugin", decoder_cfg)
    world = out / "world"
    stages.run(
        "measure_world",
        lambda: measure_world(cfg, world, last_cfgs, decoder_cfg.output / "model", episodes, tokens),
        inputs=[cfg.prompts, cfg.future_frames],
        result=world / MEASURES,
        remove=[world],
    )
    stages.run(
        "export",
        lambda: export(
            exported,
            world,
            [tokenizer_cfg, model_cfg, longer_cfg, outcomes_cfg, decoder_cfg],
            last_cfgs,
            episodes,
            stages.seconds,
        ),
        inputs=None,
        result=exported,
        remove=[exported],
    )
    logger.info("The world is in %s.", exported)


def run_in_copy(args: argparse.Namespace, tree: Path) -> None:
    """Run this script from a copy of the last commit, made when the run begins."""
    if not tree.exists():
        partial = tree.with_name(f"{tree.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        archive = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout
        subprocess.run(["tar", "-x", "-C", str(partial)], input=archive, check=True)
        partial.rename(tree)
    minutes = [] if args.minutes is None else [f"--minutes={args.minutes}"]
    command = [sys.executable, str(tree / "examples" / Path(__file__).name), *minutes, *args.overrides]
    code = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(tree)}).returncode
    if code:
        sys.exit(code)


def training_config(name: str, overrides: Sequence[str], settings: dict[str, Any], ratio: float) -> RunConfig:
    """The config of a training whose schedule is multiplied by `ratio`; with the changes for a GPU if there is one."""
    files = [f"boxing/{file}.yaml" for file in CONFIG_FILES[name]]
    if torch.cuda.is_available():
        files.append(f"boxing/{CONFIG_FILES[name][0]}_gpu.yaml")
    schema = TokenizerRunConfig if CONFIG_FILES[name][0] == "tokenizer" else WorldModelRunConfig
    cfg = section_config(name, schema, files, overrides, settings)

    def scaled(steps: int) -> int:
        return max(1, round(steps * ratio))

    schedule = {key: scaled(cfg.trainer[key]) for key in ("max_steps", "val_check_interval")}
    decay_steps = scaled(cfg.optimizer.decay_steps)
    optimizer = replace(
        cfg.optimizer, decay_steps=decay_steps, warmup_steps=min(cfg.optimizer.warmup_steps, decay_steps)
    )
    return replace(cfg, trainer={**cfg.trainer, **schedule}, optimizer=optimizer)


def train(stages: Stages, program: str, cfg: RunConfig) -> None:
    """A training as a stage, named after its output."""
    inputs = {key: value for key, value in to_dict(cfg).items() if key != "measures"}  # which training does not read
    stages.run(
        cfg.output.name, partial(fit, program, cfg), inputs=inputs, result=cfg.output / "model", remove=[cfg.output]
    )


def fit(program: str, cfg: RunConfig) -> None:
    """Train in a command of its own: Lightning starts its second process by running the command again."""
    file = cfg.output.with_suffix(".yaml")
    file.write_text(to_yaml(cfg))
    command = [str(Path(sys.executable).with_name(program)), "fit", "--config", str(file)]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def tokenize(cfg: BoxingConfig, tokenizer: Path, episodes: Path, tokens: Path) -> None:
    """Encode the episodes clip by clip: each clip starts like a prompt, so the world model learns such starts."""
    for split in SPLITS:
        config = TokenizeConfig(split=split, clip_frames=cfg.clip_frames, episodes_per_shard=2, progress=True)
        tokenize_folder(FolderConfig(folder=episodes / split, output=tokens, model=tokenizer, tokenize=config))


def measure(
    cfg: BoxingConfig, model: Path, measures: Path, chosen_by: Path | None, episodes: Path, tokens: Path
) -> None:
    """Write a model's measures into a file, with a new choice of the sampler or the one in the file `chosen_by`."""
    sampler = None if chosen_by is None else Sampler(**json.loads(chosen_by.read_text())["sampler"])
    scores = evaluate(model, episodes, tokens, prompts=cfg.prompts, frames=cfg.future_frames, sampler=sampler)
    measures.write_text(json.dumps(scores, indent=2) + "\n")


def best_run(last_cfgs: Sequence[RunConfig]) -> RunConfig:
    """The run whose model has the smallest cost on the validation split."""
    return min(last_cfgs, key=lambda cfg: json.loads((cfg.output / MEASURES).read_text())["validation_cost"])


def measure_world(
    cfg: BoxingConfig, world: Path, last_cfgs: Sequence[RunConfig], tokenizer: Path, episodes: Path, tokens: Path
) -> None:
    """Put the best world model together with the tokenizer whose decoder was trained last, and measure the two."""
    best = best_run(last_cfgs).output
    adapter = TokenizerAdapter(VidTok.from_pretrained(tokenizer))
    WorldModel.from_pretrained(best / "model").save_pretrained(world, adapter)
    measure(cfg, world, world / MEASURES, best / MEASURES, episodes, tokens)


def export(
    folder: Path,
    world: Path,
    once: Sequence[RunConfig],
    last_cfgs: Sequence[RunConfig],
    episodes: Path,
    seconds: dict[str, float],
) -> None:
    """Copy the world; add prompts, a card and documents of its trainings: those made `once`, and the last one's."""
    shutil.copytree(world, folder, dirs_exist_ok=True)
    write_prompts(folder / PROMPTS_FOLDER, episodes / "test")
    best = best_run(last_cfgs)
    lines = ["run,measure,step,value"]
    for run_cfg in (*once, best):
        run = run_cfg.output.name
        name = "psnr" if isinstance(run_cfg, TokenizerRunConfig) else "cross_entropy"
        with Image.open(run_cfg.pictures_folder / "curves.png") as curves:  # with a palette it is a third of the size
            curves.convert("RGB").quantize(64).save(folder / f"{run}_curves.png", optimize=True)
        for series in (f"train/{name}", f"val/{name}"):
            points = zip(*read_curve(run_cfg.output, series), strict=True)
            lines += [f"{run},{series},{step},{value:.4f}" for step, value in points]
    (folder / "log.csv").write_text("\n".join(lines) + "\n")
    weights = sorted(folder.rglob("*.safetensors"))
    cfgs = (*once, *last_cfgs)
    summary = {
        "weights_sha256": {
            str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in weights
        },
        "exported": best.output.name,
        "seeds": {cfg.output.name: cfg.seed for cfg in cfgs},
        "batches": {cfg.output.name: cfg.trainer["max_steps"] for cfg in cfgs},
        "minutes": {name: round(value / 60, 1) for name, value in seconds.items()},
        "measures_by_seed": {cfg.seed: json.loads((cfg.output / MEASURES).read_text()) for cfg in last_cfgs},
    }
    (folder / "training.json").write_text(json.dumps(summary, indent=2) + "\n")
    write_boxing_card(folder)


def write_prompts(folder: Path, episodes: Path) -> None:
    """Clips to start rollouts from, with the actions of their prompt and future, evenly spaced over held-out play."""
    folder.mkdir(parents=True)
    found, frames = find_episodes(episodes), PROMPT_FRAMES + SHIPPED_FUTURE
    for number in range(SHIPPED_PROMPTS):
        episode = found[number % len(found)]
        start = (episode.num_frames - frames) * number // SHIPPED_PROMPTS
        taken = slice(start, start + frames)
        path = folder / f"prompt_{number}.mp4"
        with VideoWriter(path, fps=episode.meta["fps"], crf=0) as writer:
            writer.write(read_frames(episode.path, range(taken.start, taken.stop)))
        meta = {key: episode.meta[key] for key in ("fps", "size", "action_space", "environment", "seed", "recipe")}
        meta |= {"num_frames": frames, EARLIER_ACTIONS: episode.actions[:start].tolist()}
        rewards = None if episode.rewards is None else episode.rewards[taken]
        save_episode_files(path, episode.actions[taken], meta, rewards)


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("--minutes", type=float, help="scale the trainings' schedules to this budget")
    add_overrides(command)


def main(argv: Sequence[str] | None = None) -> int:
    return run_example(train_boxing_world, argv, description="Make a Boxing world.", add_arguments=add_arguments)


if __name__ == "__main__":
    sys.exit(main())
