"""The `world-model` command line. Heavy imports happen only inside the command that needs them."""

import argparse
from collections.abc import Sequence

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


def record_command(args: argparse.Namespace) -> None:
    import sys
    from dataclasses import fields

    from vidtok_plugin.common.config import load_config
    from world_model.recording.record import RecordConfig, record

    sys.path.append("")  # modules beside which the command runs, for module:function and module:EnvId
    given = {field.name: getattr(args, field.name, None) for field in fields(RecordConfig)}
    settings = [f"{name}={value}" for name, value in given.items() if value is not None]
    cfg = load_config(RecordConfig, [], settings + args.overrides)
    record(cfg, show_progress=not args.quiet)
    say(args, f"{cfg.output}: recorded {cfg.env}")


def fit(args: argparse.Namespace) -> None:
    from world_model.training.module import WorldModelRunConfig
    from world_model.training.runs import fit_world_model

    fit_world_model(config_from(args, WorldModelRunConfig), progress=not args.quiet)


def validate(args: argparse.Namespace) -> None:
    from world_model.training.module import WorldModelRunConfig
    from world_model.training.runs import validate_world_model

    cfg = config_from(args, WorldModelRunConfig)
    report = validate_world_model(cfg, progress=not args.quiet)
    if args.json:
        print_json(report.to_json())
        return
    print_table(report.table(), width=200)
    say(args, f"{cfg.output / 'validation'}: validation.json and plots")


def rollout_command(args: argparse.Namespace) -> None:
    from world_model.decoding import Decoding
    from world_model.heads.sampler import Sampler
    from world_model.rollout.files import rollout_file
    from world_model.rollout.worlds import world_prompts

    if args.repo is not None and args.prompt is not None:
        raise ValueError("rollout: give either --prompt or --repo, got both.")
    if args.repo is not None:
        from vidtok_plugin.video.lerobot.hub import download_dataset

        prompt = download_dataset(args.repo, args.camera)
    else:
        prompt = args.prompt or world_prompts(args.model)[0]
    chosen = {name: getattr(args, name) for name in ("temperature", "top_k", "top_p", "guidance", "flow_steps", "seed")}
    sampler = Sampler(**chosen)
    result = rollout_file(
        args.model,
        prompt,
        args.output,
        episode=args.episode,
        camera=args.camera,
        actions=args.actions,
        prompt_frames=args.prompt_frames,
        num_frames=args.frames,
        sampler=sampler,
        full_color=args.full_color,
        decoding=Decoding(
            order=args.order,
            diagonal_offset=args.diagonal_offset,
            draft_tokens=args.draft_tokens,
            steps=args.steps,
            context=args.context,
            precision=args.precision,
        ),
    )
    say(args, f"{args.output}: {args.frames} frames imagined, {result.tokens_per_second:.0f} tokens per second")


def play_command(args: argparse.Namespace) -> None:
    import webbrowser

    from world_model.play.installed import check_installed

    check_installed()
    import torch

    from world_model.play.scenes import load_scenes
    from world_model.play.server import PlayServer

    torch.set_num_threads(args.threads)
    scenes = load_scenes(args.world, args.prompts)
    server = PlayServer(scenes, host=args.host, port=args.port, output=args.output)

    def started() -> None:
        print(f"{server.address}: play {args.world}; Ctrl-C ends it", flush=True)
        if args.open:
            webbrowser.open(server.address)

    server.run(started)


def push_command(args: argparse.Namespace) -> None:
    from world_model.rollout.pushing import push_world

    say(args, push_world(args.world, args.repository, push_options(args)))


def build_parser() -> argparse.ArgumentParser:
    parser, commands = command_line(
        "world-model",
        "Record, train and roll out world models.",
        "world-model play boxing --open",
        "world-model rollout --model boxing --output imagined.mp4",
        "world-model rollout --help",
    )

    command = add_command(
        commands,
        "record",
        record_command,
        "record real play as mp4 with its actions",
        "world-model record --env ALE/Boxing-v5 --output data/boxing",
        "world-model record --env CartPole-v1 --output data/cartpole --policy random train_episodes=8 size=[64,96]",
    )
    command.add_argument(
        "--env",
        required=True,
        metavar="ENV",
        help="of gymnasium: ALE/Boxing-v5, CartPole-v1, gym_pusht:gym_pusht/PushT-v0",
    )
    command.add_argument("--output", required=True, metavar="FOLDER", help="folder for the episodes")
    command.add_argument(
        "--policy",
        help="covering, random, module:function, or a .zip of stable-baselines3 (default: covering)",
    )
    command.add_argument("--processes", type=int, metavar="N", help="play N games at the same time (default: 1)")
    command.add_argument(
        "overrides", nargs="*", default=[], metavar="key=value", help="a setting, such as train_episodes=8"
    )

    command = add_command(
        commands,
        "fit",
        fit,
        "train a world model on a token store",
        "world-model fit --config actions data.store=runs/tokens",
        "world-model fit --config actions data.store=runs/tokens --print-config",
    )
    add_config_arguments(command, "world_model")
    command = add_command(
        commands,
        "validate",
        validate,
        "measure the last checkpoint of a run",
        "world-model validate --config actions data.store=runs/tokens measures.episodes=my_held_out_videos",
        table=True,
    )
    add_config_arguments(command, "world_model")

    command = add_command(
        commands,
        "rollout",
        rollout_command,
        "imagine how a video continues",
        "world-model rollout --model boxing --output imagined.mp4 --frames 64",
        "world-model rollout --model my_world --prompt clip.mp4 --actions clip.actions.npy --output imagined.mp4",
    )
    command.add_argument(
        "--model",
        required=True,
        metavar="WORLD",
        help="a shipped world (boxing), a saved model's folder, or a hub repository",
    )
    command.add_argument(
        "--prompt",
        type=path_argument,
        metavar="clip.mp4",
        help="the video to continue, or a dataset (docs/recordings.md) with it (default: one of the world's own)",
    )
    command.add_argument(
        "--repo", metavar="USER/NAME", help="in place of --prompt, a LeRobot dataset on the Hugging Face hub"
    )
    command.add_argument("--episode", type=int, metavar="N", help="which episode of a dataset, from 0 on")
    command.add_argument(
        "--camera",
        "--cameras",
        metavar="KEY",
        help="of a dataset with several; KEY,KEY puts them side by side (default: the only one)",
    )
    command.add_argument(
        "--actions", type=path_argument, metavar="clip.actions.npy", help="default: the file beside the prompt"
    )
    command.add_argument("--output", type=path_argument, required=True, metavar="out.mp4", help="the video to write")
    add_full_color(command)
    command.add_argument(
        "--prompt-frames", type=int, default=13, metavar="N", help="frames of the prompt to use (default: 13)"
    )
    command.add_argument("--frames", type=int, default=32, metavar="N", help="frames to imagine (default: 32)")
    command.add_argument(
        "--temperature", type=float, default=1.0, metavar="X", help="0 draws the likeliest tokens (default: 1)"
    )
    command.add_argument("--top-k", type=int, metavar="N", help="draw from the N likeliest tokens (default: all)")
    command.add_argument(
        "--top-p",
        type=float,
        metavar="P",
        help="draw from the likeliest tokens that reach probability P (default: all)",
    )
    command.add_argument(
        "--guidance", type=float, default=1.0, metavar="X", help="strength of the actions; 1 is as learned (default: 1)"
    )
    command.add_argument(
        "--precision",
        choices=["float32", "bfloat16", "int8", "auto"],
        default="float32",
        help="of the model and the decoder; int8: of the model's weights; auto: bfloat16 where it is faster (default: "
        "float32)",
    )
    command.add_argument(
        "--flow-steps", type=int, metavar="N", help="sampling steps of continuous tokens (default: the model's)"
    )
    command.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the random numbers (default: 0)")
    command.add_argument("--order", choices=("raster", "diagonal", "masked"), help="default: as the model was trained")
    command.add_argument(
        "--diagonal-offset", type=int, metavar="N", help="diagonal order: columns between rows (default: 1)"
    )
    command.add_argument(
        "--draft-tokens",
        type=int,
        metavar="N",
        help="raster order: guess and check N tokens in one call; the same tokens, sooner for a trained model (16)",
    )
    command.add_argument(
        "--context",
        choices=("exact", "rolling"),
        help="when it is full: read its newer part again, or drop its oldest step (default: as the model was trained)",
    )
    command.add_argument(
        "--steps", type=int, metavar="N", help="masked order: model calls per latent step (default: 8)"
    )

    command = add_command(
        commands,
        "play",
        play_command,
        "play a world in a browser, beside the real game",
        "world-model play boxing --open",
        "world-model play my_world --host 0.0.0.0 --port 8080 --output saved",
    )
    command.add_argument("world", metavar="WORLD", help="a shipped world (boxing), a folder, or a hub repository")
    command.add_argument("--port", type=int, default=8000, metavar="N", help="0 takes any free one (default: 8000)")
    command.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="for other machines to play, their side's address of this one, or 0.0.0.0 (default: 127.0.0.1)",
    )
    command.add_argument("--open", action="store_true", help="open the page in the browser")
    command.add_argument(
        "--prompts", type=path_argument, metavar="FOLDER", help="episodes to start from (default: the world's own)"
    )
    command.add_argument(
        "--output", type=path_argument, metavar="FOLDER", help="write saved games there, too (default: download only)"
    )
    command.add_argument(
        "--threads",
        type=int,
        default=1,
        metavar="N",
        help="of PyTorch for each game; on a busy CPU more are slower (default: 1)",
    )

    command = add_command(
        commands,
        "push",
        push_command,
        "push a world to the Hugging Face hub",
        "world-model push runs/world_model/model user/world --private",
    )
    command.add_argument("world", metavar="WORLD", help="a saved model's folder with its adapter, or a shipped world")
    add_push_arguments(command)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(build_parser(), argv)
