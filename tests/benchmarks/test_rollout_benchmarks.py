"""The benchmarks of rollouts and of training steps run at a tiny size, and compare networks of the same shape."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from benchmark_files import load_benchmark
from measured_models import random_model
from recordings import tiny_adapter, write_episode, write_folder
from world_models import save_tiny_world

from vidtok_plugin.store.reader import TokenStore
from vidtok_plugin.store.tokenize import write_store
from vidtok_plugin.video.episodes import find_episodes
from world_model.actions import GroupedActions
from world_model.generation.generator import StepGenerator
from world_model.heads.sampler import Sampler
from world_model.model import WorldModel
from world_model.transformer.block import TransformerConfig

pytest.importorskip("transformers")
shapes = load_benchmark("shapes")
TINY = shapes.Shape(size="demo")


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(shapes.SIZES, "demo", TransformerConfig(width=24, depth=1, heads=2))


def reported(benchmark: ModuleType, folder: Path, *arguments: str) -> list[dict[str, Any]]:
    output = folder / "results.json"
    benchmark.main([*arguments, "--output", str(output), "--threads", "1", "--rounds", "1", "--sizes", "demo"])
    rows: list[dict[str, Any]] = json.loads(output.read_text())["rows"]
    return rows


def test_both_networks_have_the_same_shape() -> None:
    def weights(*modules: torch.nn.Module) -> int:
        return sum(parameter.numel() for module in modules for parameter in module.parameters() if parameter.ndim == 2)

    llama = TINY.llama(64)
    assert weights(*TINY.world_model().transformer.blocks) == weights(*llama.model.layers)
    assert llama.lm_head.out_features == shapes.TOKENS.codebook_size


def test_rollouts_against_generate(tmp_path: Path) -> None:
    benchmark = load_benchmark("rollout_speed")
    rows = reported(benchmark, tmp_path, "--quick", "--batches", "1")
    calls = {row["order"]: row["calls a frame"] for row in rows if "calls a frame" in row}
    assert (calls["raster"], calls["diagonal, offset 1"], calls["masked, 8 calls"]) == (16, 3.75, 9 / 4)
    assert {"generate()", "generate(), static cache"} <= calls.keys()
    assert all(row["frames/s"] > 0 for row in rows)
    apart = {row["order"] for row in rows} - calls.keys()
    whole = {"whole rollout(), raster", "whole rollout(), diagonal, offset 1"}
    assert apart == {"tokenizer encodes the prompt", "tokenizer decodes all", *whole}


def test_only_some_orders(tmp_path: Path) -> None:
    arguments = ("--quick", "--batches", "1", "--only", "raster", "--cpu-time")
    rows = reported(load_benchmark("rollout_speed"), tmp_path, *arguments)
    assert [row["order"] for row in rows if "calls a frame" in row] == ["generate()", "raster"]


@pytest.mark.slow
def test_time_beside_the_machines_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every operation is of one kind, and its limit is known."""
    benchmark = load_benchmark("limits")
    monkeypatch.setattr(benchmark, "product_rate", lambda **_: 1e11)
    monkeypatch.setattr(benchmark, "reading_rate", lambda: 1e10)
    monkeypatch.setattr(benchmark, "machine_rates", lambda *_: [])
    rows = reported(benchmark, tmp_path, "--batches", "1")
    works = dict.fromkeys(row["work"] for row in rows)
    assert list(works) == ["training, demo", "raster, demo, batch 1", "diagonal, demo, batch 1"]
    for work in works:
        kinds = {row["kind"]: row for row in rows if row["work"] == work}
        assert {"matrix products", "attention", "copies", "between operations", "all"} <= kinds.keys()
        measured = [row for kind, row in kinds.items() if kind not in ("all", "between operations")]
        assert kinds["all"]["calls"] == sum(row["calls"] for row in measured)
        assert kinds["matrix products"]["limit, ms"] > 0


def test_operations_of_products_are_known() -> None:
    benchmark = load_benchmark("limits")
    x, weight = torch.randn(3, 5), torch.randn(7, 5)
    with torch.no_grad(), benchmark.OperationTimes(products=1.0, reading=1e12) as times:
        torch.addmm(x @ weight.t(), x, weight.t())
        torch.mm(x, weight.t())
        torch.bmm(x[None], weight.t()[None])
    assert times.limits["matrix products"] == pytest.approx(3 * 2 * 3 * 5 * 7, rel=1e-3)
    assert times.limits["attention"] == pytest.approx(2 * 3 * 5 * 7, rel=1e-3)


def test_imagined_environments(tmp_path: Path) -> None:
    world, output = save_tiny_world(tmp_path / "world"), tmp_path / "results.json"
    write_folder(world / "prompts", {"a": 15})
    arguments = ["--world", str(world), "--num-envs", "2", "--steps", "1", "--rounds", "1", "--threads", "1"]
    load_benchmark("imagined_envs").main([*arguments, "--cpu-time", "--output", str(output)])
    rows = json.loads(output.read_text())["rows"]
    kinds = [f"2, {kind}, {precision}" for precision in ("float32", "bfloat16") for kind in ("single", "batch")]
    assert [row["environments"] for row in rows] == kinds * 2
    assert all(row["frames/s"] > 0 and row["speedup"] > 0 for row in rows)


@pytest.mark.slow
def test_rollouts_by_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    benchmark, output = load_benchmark("rollout_precision"), tmp_path / "results.json"
    monkeypatch.setattr(benchmark, "ORDERS", {"diagonal": {"order": "diagonal"}})
    benchmark.main(["--sizes", "demo", "--rounds", "1", "--threads", "1", "--output", str(output)])
    rows = json.loads(output.read_text())["rows"]
    assert [row["precision"] for row in rows] == ["float32", "bfloat16", "int8"]
    assert all(row["ms a step"] > 0 for row in rows) and rows[0]["x float32"] == rows[1]["x bfloat16"] == 1


@pytest.mark.slow
def test_a_long_rollout(tmp_path: Path) -> None:
    world, output = save_tiny_world(tmp_path / "world"), tmp_path / "results.json"
    sizes = ["--frames", "64", "--live-at", "10", "16", "--threads", "1"]
    load_benchmark("rollout_steady").main(["--world", str(world), *sizes, "--output", str(output)])
    for row in json.loads(output.read_text())["rows"]:
        assert row["steps"] == 16 and 0 < row["median ms"] <= row["longest ms"]
        assert row["MB after 10 steps"] == pytest.approx(row["MB after 16 steps"], rel=0.02)
        assert row["MB after 10 steps"] > row["state MB"]


@pytest.mark.slow
def test_what_bfloat16_loses(tmp_path: Path) -> None:
    """The cross entropy is that of whole windows, whose steps see the same past."""
    world, adapter = save_tiny_world(tmp_path / "world"), tiny_adapter()
    videos = write_folder(tmp_path / "episodes", {"a": 21, "b": 21, "c": 17})
    write_store(adapter, find_episodes(videos), tmp_path / "store", split="test")
    folders = ["--world", str(world), "--store", str(tmp_path / "store"), "--videos", str(videos)]
    output, sizes = tmp_path / "results.json", ["--clips", "3", "--threads", "1"]
    load_benchmark("bfloat16_loss").main([*folders, *sizes, "--output", str(output)])
    diagonal, raster, decoder = json.loads(output.read_text())["rows"]
    model, store = WorldModel.from_pretrained(world), TokenStore(tmp_path / "store", "test")
    window = store.windows([0, 1], [0, 0], 6)
    actions = GroupedActions(values=window["actions"], known=window["actions_known"])
    for row, offset in ((diagonal, 1), (raster, None)):
        with torch.no_grad():
            losses = model.score(window["codes"], actions, diagonal_offset=offset).losses
        assert row["float32"] == pytest.approx(float(losses[:, 3:].sum(-1).mean()), rel=1e-3)
        assert abs(row["change"]) < 0.1 and row["bfloat16"] != row["float32"]
    assert abs(decoder["change"]) < 0.5 and decoder["bfloat16"] != decoder["float32"]


def test_drawing_without_a_cache_gives_the_same_tokens() -> None:
    benchmark = load_benchmark("rollout_speed")
    model, sampler = TINY.world_model(), Sampler(temperature=0)
    uncached = benchmark.without_cache(model, 2, sampler).work()
    actions = shapes.random_actions(2, benchmark.PROMPT + 1)
    prompt = shapes.random_codes(2, benchmark.PROMPT + 1)[:, :-1]
    generator = StepGenerator(model, prompt, actions[: benchmark.PROMPT], sampler)
    drawn = generator.step(actions[benchmark.PROMPT :]).flatten(1)
    assert torch.equal(uncached, drawn[:, : benchmark.UNCACHED_TOKENS])


def test_growth_of_a_rollouts_cost_and_its_plot(tmp_path: Path) -> None:
    plot = tmp_path / "new" / "cost.png"
    rows = reported(load_benchmark("rollout_speed"), tmp_path, "--quick", "--batches", "1", "--plot", str(plot))
    assert plot.stat().st_size > 10_000
    held = {(row["who"], row["tokens"]): row["cache MB"] for row in rows if "cache MB" in row}
    for tokens in (256, 512, 1024):
        assert held["raster", tokens] == held["generate()", tokens] == pytest.approx(tokens * 2 * 24 * 4 / 1e6)
    assert {row["tokens"] for row in rows if row["axis"] == "generated"} == {64, 128, 192, 256}


def test_training_steps_against_a_llama(tmp_path: Path) -> None:
    benchmark = load_benchmark("world_model_step")
    rows = reported(benchmark, tmp_path, "--no-memory", "--batches", "1")
    assert [row["network"] for row in rows] == ["ours", "Llama"] and rows[1]["x Llama"] == 1
    for name in ("ours", "Llama"):
        model, step = benchmark.make_step(name, TINY, 1)
        before = [parameter.detach().clone() for parameter in model.parameters()]
        step()
        assert not any(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


def test_orders_of_decoding_on_a_saved_model(tmp_path: Path) -> None:
    for number in range(2):
        write_episode(tmp_path / "episodes" / f"{number}.mp4", 40 + number)
    adapter, episodes = tiny_adapter(), find_episodes(tmp_path / "episodes")
    write_store(adapter, episodes, tmp_path / "store", split="test", clip_frames=21)
    random_model().save_pretrained(tmp_path / "model", adapter)
    folders = {"causal": "model", "store": "store", "episodes": "episodes"}
    given = [part for name, folder in folders.items() for part in (f"--{name}", str(tmp_path / folder))]
    output = tmp_path / "results.json"
    sizes = ["--prompts", "2", "--frames", "4", "--rounds", "1", "--threads", "1"]
    load_benchmark("decoding").main([*given, *sizes, "--output", str(output)])
    rows = json.loads(output.read_text())["rows"]
    diagonal = [f"diagonal, offset {offset}" for offset in (4, 2, 1)]
    assert [row["order"] for row in rows] == ["raster", "raster, 16 drafted", *diagonal]
    assert all(row["cross entropy"] > 0 and row["frames/s, batch 2"] > 0 for row in rows)
