"""The wheel alone, in a fresh environment and an empty folder: what the README shows works without the repository."""

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

import pytest
from docs_blocks import README, code_blocks, shell_commands
from places import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.long]

MINUTES = 60  # seconds
# What makes the README's commands small; None where a command needs what a fresh machine has not.
FIT = "trainer.max_steps=2 trainer.val_check_interval=2 trainer.enable_progress_bar=false trainer.accelerator=cpu"
SMALL: dict[str, str | None] = {
    "vidtok-plugin presets": "",
    "vidtok-plugin fit": f"{FIT} objective.perceptual=none data.height=64 data.width=64 data.clip_length=9 "
    "data.num_workers=0 data.validation_clips=1 trainer.precision=32-true",
    "vidtok-plugin reconstruct": "",
    "vidtok-plugin evaluate": None,  # downloads the weights of LPIPS
    "vidtok-plugin convert": None,  # of a published checkpoint
    "vidtok-plugin tokenize": "--processes 1",
    "vidtok-plugin check": "",
    "world-model record": "train_episodes=1 validation_episodes=1 test_episodes=1 frames_per_episode=70",
    "world-model fit": f"{FIT} model.transformer.width=24 model.transformer.depth=1 model.transformer.heads=2 "
    "data.validation_windows=2",
    "world-model validate": "measures.episodes=my_videos measures.prompts=2 measures.drift_rollouts=1",
    "world-model play": None,  # serves until it is stopped
    "world-model rollout": "--frames 8",
}


@dataclass(frozen=True, kw_only=True)
class Environment:
    """A Python environment and the folder that its commands run in."""

    folder: Path
    work: Path

    def run(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Runs a program of the environment, to which the checkout is unknown."""
        env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        env["TRACKIO_DIR"] = str(self.work / "tracked")
        return subprocess.run(
            [str(self.folder / "bin" / program), *arguments],
            cwd=self.work,
            env={**env, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=20 * MINUTES,
        )

    def succeed(self, program: str, *arguments: str) -> str:
        """Runs a program that must end well; -> what it printed."""
        done = self.run(program, *arguments)
        assert done.returncode == 0, f"{program} {' '.join(arguments)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        return done.stdout

    def pip(self, *packages: str, constraints: str = "constraints.txt") -> None:
        self.succeed("python", "-m", "pip", "install", "-q", "-c", str(ROOT / constraints), *packages)

    @property
    def site(self) -> Path:
        return Path(self.succeed("python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())


def new_environment(folder: Path, below: Environment | None = None) -> Environment:
    """A new environment, which finds the packages of the one below it."""
    work = folder / "empty"
    work.mkdir(parents=True)
    subprocess.run([sys.executable, "-m", "venv", str(folder / "env")], check=True, timeout=5 * MINUTES)
    environment = Environment(folder=folder / "env", work=work)
    if below is not None:
        lines = [str(below.site), *(path.read_text() for path in below.site.glob("below.pth"))]
        (environment.site / "below.pth").write_text("\n".join(lines))
    return environment


def prompts_of_the_world(environment: Environment) -> Path:
    code = "from world_model.rollout.worlds import world_prompts; print(world_prompts('boxing')[0].parent)"
    return Path(environment.succeed("python", "-c", code).strip())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the sdist; `make package` keeps both, in the folder that it names."""
    dist = Path(os.environ.get("PACKAGE_DIST") or tmp_path_factory.mktemp("dist")).absolute()
    command = [sys.executable, "-m", "build", "--outdir", str(dist), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=10 * MINUTES)
    assert done.returncode == 0, done.stderr[-4000:]
    (sdist,) = dist.glob("*.tar.gz")
    assert sdist.stat().st_size < 100e6, "PyPI takes no files above 100 MB"
    (built,) = dist.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def environments(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of the environments, gigabytes that pytest would keep."""
    folder = tmp_path_factory.mktemp("environments")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def base(wheel: Path, environments: Path) -> Environment:
    """An environment with the wheel and what it needs."""
    environment = new_environment(environments / "base")
    environment.pip(str(wheel))
    return environment


@pytest.fixture(scope="module")
def training(base: Environment, wheel: Path, environments: Path) -> Environment:
    """An environment that has the extras `train` and `demo` as well; what `base` has it takes from there."""
    environment = new_environment(environments / "training", base)
    environment.pip("--no-deps", "--ignore-installed", str(wheel))
    environment.pip(f"{wheel}[train,demo]")
    return environment


@pytest.fixture(scope="module")
def trackers(training: Environment, wheel: Path, environments: Path) -> Environment:
    """An environment with trackers that need older versions of other packages than `constraints.txt` has."""
    environment = new_environment(environments / "trackers", training)
    pinned = [
        line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith(("torch=", "numpy="))
    ]
    command = ["python", "-m", "pip", "install", "-q"]
    environment.succeed(*command, "--no-deps", "--ignore-installed", str(wheel))
    environment.succeed(*command, *pinned, f"{wheel}[trackio,mlflow]")
    return environment


@pytest.fixture(scope="module")
def lowest(base: Environment, wheel: Path, environments: Path) -> Environment:
    """An environment with the oldest versions that the package admits, but for torch."""
    environment = new_environment(environments / "lowest", base)
    environment.pip("--no-deps", "--ignore-installed", str(wheel))
    environment.pip(f"{wheel}[train]", constraints="constraints-lowest.txt")
    return environment


def test_the_base_install_leaves_out_what_only_training_needs(base: Environment) -> None:
    installed = {line.split()[0].lower() for line in base.succeed("python", "-m", "pip", "list").splitlines()}
    assert "vidtok-plugin" in installed
    assert not installed & {
        "lightning",
        "tensorboard",
        "matplotlib",
        "torchdata",
        "torchcodec",
        "decord",
        "gymnasium",
        "starlette",
    }


def test_python_lines_of_the_readme_run(base: Environment) -> None:
    (base.work / "readme.py").write_text("\n".join(code_blocks(README, "python")))
    base.succeed("python", "readme.py")


def test_the_shipped_world_imagines(base: Environment) -> None:
    base.succeed("world-model", "rollout", "--model", "boxing", "--output", "out.mp4", "--frames", "8")
    code = "from vidtok_plugin.video import probe; print(probe('out.mp4').num_frames)"
    assert base.succeed("python", "-c", code).split() == [str(13 + 8)]


def test_what_is_missing_is_named_with_its_extra(base: Environment) -> None:
    for extra, package, command in (
        ("train", "lightning", ("vidtok-plugin", "fit", "--config", "finetune")),
        ("train", "lightning", ("world-model", "validate", "--config", "demo_from_scratch")),
        ("play", "starlette", ("world-model", "play", "boxing")),
        ("demo", "ale_py", ("world-model", "record", "--env", "ALE/Breakout-v5", "--output", "play")),
    ):
        done = base.run(*command)
        assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
        assert f"{package}, which is not installed; run: pip install 'vidtok-plugin[{extra}]'" in done.stderr
    base.succeed("python", "-c", "from world_model import *; from vidtok_plugin.video import *; load_world, probe")
    done = base.run("python", "-c", "from world_model import WorldModelModule")
    assert "training needs lightning, which is not installed; run: pip install 'vidtok-plugin[train]'" in done.stderr


def test_configs_and_examples_are_copied_and_run(training: Environment) -> None:
    training.succeed("vidtok-plugin", "configs", "--copy", "my_configs")
    printed = training.succeed(
        "vidtok-plugin", "fit", "--config", "my_configs/tokenizer/finetune.yaml", "--print-config"
    )
    assert "activation_checkpointing: true" in printed
    training.succeed("vidtok-plugin", "examples", "--copy", "my_examples")
    prompt = prompts_of_the_world(training) / "prompt_0.mp4"
    arguments = ["--model", "boxing", "--prompt", str(prompt), "--frames", "8", "--output", "imagined.mp4"]
    training.succeed("python", "my_examples/rollout.py", *arguments)
    assert (training.work / "imagined.mp4").exists()


def copy_clips(environment: Environment) -> None:
    """Copies clips of the shipped world to the README's folders of videos."""
    prompts = sorted(prompts_of_the_world(environment).iterdir())
    for folder, chosen in (("my_videos", "01"), ("my_held_out_videos", "2")):
        (environment.work / folder).mkdir()
        for path in prompts:
            if path.name.startswith(tuple(f"prompt_{number}." for number in chosen)):
                shutil.copy(path, environment.work / folder)


def test_commands_of_the_readme_run(training: Environment) -> None:
    """In its order, on clips of the shipped world, with overrides that make them small."""
    copy_clips(training)
    shutil.copy(training.work / "my_videos" / "prompt_0.mp4", training.work / "film.mp4")
    ran = set()
    for block in code_blocks(README, "sh"):
        for program, *arguments in shell_commands(block):
            if program in ("make", "pip"):
                continue
            more = SMALL[f"{program} {arguments[0]}"]
            if more is not None:
                training.succeed(program, *arguments, *more.split())
                ran.add(f"{program} {arguments[0]}")
    assert ran == {name for name, more in SMALL.items() if more is not None}
    for made in ("runs/mine/model/model.safetensors", "out.mp4", "runs/demo/world_model/validation/validation.json"):
        assert (training.work / made).exists(), made


def test_trackers_show_metrics_and_pictures_and_go_on_with_a_resumed_run(trackers: Environment) -> None:
    copy_clips(trackers)
    small = [*str(SMALL["vidtok-plugin fit"]).split(), "preset=vidtok_tiny", "output=run", "loggers=[trackio,mlflow]"]
    data = ["data.train=[my_videos]", "data.validation=[my_held_out_videos]", "trainer.log_every_n_steps=1"]
    for steps in (2, 4):
        trackers.succeed("vidtok-plugin", "fit", "--config", "finetune", *small, *data, f"trainer.max_steps={steps}")
    reading = """
        from mlflow import MlflowClient
        client = MlflowClient("sqlite:///run/mlflow.db")
        (run,) = client.search_runs([client.get_experiment_by_name("vidtok-plugin").experiment_id])
        print(run.info.status, run.data.params["optimizer/lr"])
        print(*(metric.step for metric in client.get_metric_history(run.info.run_id, "val/psnr")))
        print(sum(file.path.endswith(".png") for file in client.list_artifacts(run.info.run_id, "images")))
    """
    printed = trackers.succeed("python", "-c", dedent(reading))
    assert printed.splitlines() == ["FINISHED 1e-05", "1 3", "2"]  # Lightning counts steps from 0
    folder = trackers.work / "tracked"
    (database,) = folder.glob("*.db")
    with closing(sqlite3.connect(database)) as connection:
        rows = connection.execute("select run_name, step, metrics from metrics order by step").fetchall()
    assert len({run for run, _, _ in rows}) == 1
    assert sorted({step for _, step, metrics in rows if b"val/psnr" in metrics}) == [1, 3]
    assert len(list(folder.glob("media/**/*.png"))) == 2


def test_the_oldest_versions_that_are_admitted_work(lowest: Environment) -> None:
    versions = "from importlib.metadata import version; print(version('numpy'), version('lightning'))"
    assert lowest.succeed("python", "-c", versions).split() == ["2.1.0", "2.6.0"]
    (lowest.work / "readme.py").write_text("\n".join(code_blocks(README, "python")))
    lowest.succeed("python", "readme.py")
    copy_clips(lowest)
    data = ["data.train=[my_videos]", "data.validation=[my_held_out_videos]"]
    small = [*str(SMALL["vidtok-plugin fit"]).split(), "preset=vidtok_tiny", "output=run"]
    lowest.succeed("vidtok-plugin", "fit", "--config", "finetune", *small, *data)
    for folder, split in (("my_videos", "train"), ("my_held_out_videos", "validation")):
        arguments = ["--model", "run/model", "--output", "tokens", "--split", split, "--processes", "1"]
        lowest.succeed("vidtok-plugin", "tokenize", folder, *arguments)
    small = str(SMALL["world-model fit"]).split()
    lowest.succeed("world-model", "fit", "--config", "demo_from_scratch", "data.store=tokens", *small)
