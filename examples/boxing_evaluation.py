"""Measures a Boxing world model on held-out play, with the sampler that does best on the validation split.

    python examples/boxing_evaluation.py MODEL EPISODES STORE [--prompts 64] [--frames 128]

MODEL is a saved world model with its adapter. EPISODES is a folder of play with validation/ and test/, and STORE has
the tokens of its train and test splits.
"""

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from boxing_measures import SIZE, BoxingScores, both_present, mean_distances, measure_boxing
from shared import held_out_clips, run_example

from vidtok_plugin import TokenizerAdapter
from vidtok_plugin.evaluation.psnr import reconstruction_psnr
from vidtok_plugin.store.reader import TokenStore
from vidtok_plugin.video.data import VideoDataConfig
from vidtok_plugin.video.episodes import find_episodes
from world_model import Decoding, Sampler, WorldModel, load_world
from world_model.measures import Prompts, cross_entropies, held_out_prompts, random_actions
from world_model.rollout.rollout import rollout
from world_model.rollout.tokens import reconstruct

logger = logging.getLogger("vidtok_plugin.boxing_evaluation")
PROMPT_FRAMES = 13
HOLD = (3, 12)  # of the random actions whose effect is measured
CLIP_FRAMES, CLIPS = 64, 32  # for the tokenizer's PSNR
SEARCH_FRAMES = 16
DECODING = Decoding(order="diagonal", diagonal_offset=2)
SAMPLERS = tuple(
    Sampler(temperature=temperature, guidance=guidance)
    for temperature in (0.0, 0.3, 0.6)
    for guidance in (1.0, 1.5, 2.0)
)


def find_prompts(episodes: Path, count: int, frames: int) -> Prompts:
    return held_out_prompts(find_episodes(episodes), count=count, prompt_frames=PROMPT_FRAMES, future_frames=frames)


def measure(model: WorldModel, adapter: TokenizerAdapter, prompts: Prompts, sampler: Sampler) -> BoxingScores:
    assert prompts.actions is not None  # the policy's
    others = random_actions(prompts.actions, prompts.prompt_frames, model.tokens.actions.size, HOLD)
    return measure_boxing(model, adapter, prompts, others=others, sampler=sampler, decoding=DECODING)[0]


@torch.no_grad()
def choose_sampler(
    model: WorldModel, adapter: TokenizerAdapter, prompts: Prompts, samplers: Sequence[Sampler]
) -> tuple[Sampler, float]:
    """The sampler with the smallest cost, and the cost: the distance of the player in pixels, which a tenth of frames
    without both boxers doubles."""
    costs, prompts = {}, prompts.to(model.device)
    reconstructed = reconstruct(adapter, prompts.video)[:, :, prompts.prompt_frames :]
    for sampler in samplers:
        if sampler.guidance != 1 and not model.config.action_dropout:
            continue  # the model can't be guided
        settings = {"num_frames": SEARCH_FRAMES, "sampler": sampler, "decoding": DECODING}
        imagined = rollout(model, adapter, prompt=prompts.prompt, actions=prompts.actions, **settings).imagined
        distance = mean_distances(imagined, prompts.future)[str(SEARCH_FRAMES)]
        present = float(both_present(imagined, reconstructed).float().mean())
        costs[sampler] = distance * (1 + 10 * (1 - present))
        logger.info(
            "temperature %g, guidance %g: the player is %.2f pixels away after %d frames; both boxers are "
            "in %.3f of the frames",
            *(sampler.temperature, sampler.guidance),
            *(distance, SEARCH_FRAMES, present),
        )
    best = min(costs, key=costs.__getitem__)
    return best, costs[best]


def evaluate(
    model_folder: Path, episodes: Path, store: Path, *, prompts: int, frames: int, sampler: Sampler | None = None
) -> dict[str, Any]:
    """All measures on the test split, with `sampler` or with the best of `SAMPLERS` on as many prompts of the
    validation split; and the cost of that sampler there."""
    model, adapter = load_world(model_folder)
    validation = find_prompts(episodes / "validation", prompts, SEARCH_FRAMES)
    sampler, cost = choose_sampler(model, adapter, validation, SAMPLERS if sampler is None else (sampler,))
    data = VideoDataConfig(train=(str(episodes),), clip_length=CLIP_FRAMES, height=SIZE, width=SIZE)
    clips = held_out_clips(episodes / "test", data, CLIPS)
    train, test = TokenStore(store, "train"), TokenStore(store, "test")
    entropies = cross_entropies(model, train, test, window_steps=model.config.max_steps)
    scores = measure(model, adapter, find_prompts(episodes / "test", prompts, frames), replace(sampler, seed=1))
    return {
        "tokenizer_psnr": reconstruction_psnr(adapter.tokenizer, clips),
        "cross_entropy": entropies.world_model,
        "cross_entropy_over_unigram": entropies.world_model / entropies.unigram,
        "cross_entropy_over_copy": entropies.world_model / entropies.copy,
        "sampler": asdict(sampler),
        "decoding": asdict(DECODING),
        "validation_cost": cost,
        "prompts": prompts,
        **asdict(scores),
    }


def print_scores(args: argparse.Namespace) -> None:
    given = None if args.temperature is None else Sampler(temperature=args.temperature, guidance=args.guidance)
    scores = evaluate(args.model, args.episodes, args.store, prompts=args.prompts, frames=args.frames, sampler=given)
    print(json.dumps(scores, indent=2))


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("model", type=Path)
    command.add_argument("episodes", type=Path, help="a folder with validation/ and test/")
    command.add_argument("store", type=Path)
    command.add_argument("--prompts", type=int, default=64)
    command.add_argument("--frames", type=int, default=128, help="frames to imagine, a whole number of latent steps")
    command.add_argument("--temperature", type=float, help="use this temperature instead of searching for a sampler")
    command.add_argument("--guidance", type=float, default=1.0, help="with --temperature")


def main(argv: Sequence[str] | None = None) -> int:
    return run_example(print_scores, argv, description="Measure a Boxing world model.", add_arguments=add_arguments)


if __name__ == "__main__":
    sys.exit(main())
