"""A step is a batch for any number of optimizers and micro-batches; averages, frozen encoders, NaN losses."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from stores import write_episodes
from tensordict import TensorDict
from torch import Tensor
from training_runs import configure, fit_here, logged, make_store, make_videos, run_here, settings

from vidtok_plugin import VidTok, training
from vidtok_plugin.tokenizer.training.module import TokenizerModule, TokenizerRunConfig
from vidtok_plugin.training.averaging import EMA
from vidtok_plugin.training.module import Loss
from vidtok_plugin.training.non_finite import NonFiniteError
from vidtok_plugin.video import VideoDataModule
from vidtok_plugin.video.batch import VideoBatch
from world_model import TokenDataModule, WorldModelModule, WorldModelRunConfig

pytestmark = [
    pytest.mark.usefixtures("narrow_discriminators"),
    pytest.mark.filterwarnings("ignore:The .*_dataloader.* does not have many workers"),
    pytest.mark.filterwarnings(r"ignore:Found \d+ module\(s\) in eval mode"),  # a frozen encoder
]
PLAIN = ("objective.discriminator=none", "trainer.check_val_every_n_epoch=1000")
NO_DROPOUT = "architecture.dropout=0.0"


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_videos(tmp_path_factory.mktemp("videos"))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return make_store(tmp_path_factory.mktemp("tokens"))


def config(videos: Path, output: Path, *overrides: str) -> TokenizerRunConfig:
    cfg = configure("tokenizer", settings("tokenizer", videos, output, *overrides))
    assert isinstance(cfg, TokenizerRunConfig)
    return cfg


def fit(cfg: TokenizerRunConfig, callbacks: Sequence[pl.Callback] = ()) -> TokenizerModule:
    pl.seed_everything(cfg.seed, verbose=False)
    module = TokenizerModule(cfg)
    training.fit(cfg, module, VideoDataModule(cfg), callbacks)
    return module


class Weights(pl.Callback):
    """Records all weights after each batch."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.weights: list[dict[str, Tensor]] = []

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        self.steps.append(trainer.global_step)
        self.weights.append({name: weight.detach().clone() for name, weight in module.named_parameters()})

    def changed(self, prefix: str) -> list[bool]:
        """Whether any weight with this prefix changed, for each pair of successive batches."""
        names = [name for name in self.weights[0] if name.startswith(prefix)]
        pairs = zip(self.weights, self.weights[1:], strict=False)
        return [any(not torch.equal(before[name], after[name]) for name in names) for before, after in pairs]


# Counting


def test_two_optimizers_count_each_batch_once(videos: Path, tmp_path: Path) -> None:
    weights = Weights()
    cfg = config(videos, tmp_path, "trainer.max_steps=6", "checkpoint_every=4", "objective.disc_start=3")
    fit(cfg, [weights])
    assert weights.steps == [1, 2, 3, 4, 5, 6]
    assert weights.changed("tokenizer.") == [True] * 5
    assert weights.changed("objective.discriminator.") == [False, False, True, True, True]  # from batch 3
    assert sorted(logged(tmp_path)) == list(range(6))
    assert sorted(logged(tmp_path, ["train/loss_discriminator"])) == [3, 4, 5]
    names = [path.name for path in training.checkpoints.find_checkpoints(cfg.checkpoints)]
    assert names == ["step-00000006.ckpt", "step-00000004.ckpt"]


def test_each_optimizer_clips_its_own_gradients(videos: Path, tmp_path: Path) -> None:
    clips = ["optimizer={lr: 1.0e-3, gradient_clip: 0.5}", "discriminator_optimizer={lr: 1.0e-3, gradient_clip: 0.25}"]
    module = fit(config(videos, tmp_path, "trainer.max_steps=1", "objective.disc_start=0", *clips))
    for trained, clip in ((module.tokenizer, 0.5), (module.objective.discriminator, 0.25)):
        assert isinstance(trained, torch.nn.Module)
        norm = torch.stack([p.grad.norm() for p in trained.parameters() if p.grad is not None]).norm()
        assert norm <= clip + 1e-5
    ((norm, other),) = logged(tmp_path, ["train/grad_norm", "train/grad_norm_discriminator"]).values()
    assert norm > 0.5 and other > 0  # before clipping


class WithoutFirst(TokenizerModule):
    """Only the discriminator learns from the first batch."""

    def losses(self, batch: VideoBatch | Tensor, step: int) -> Iterator[Loss]:
        for loss in super().losses(batch, step):
            yield replace(loss, value=None) if step == 0 and loss.name == self.optimizer_names()[0] else loss


def test_a_skipped_optimizer_gives_its_names_to_no_other(videos: Path, tmp_path: Path) -> None:
    """The discriminator's loss and gradient norm were logged as the model's."""
    cfg = config(videos, tmp_path, "trainer.max_steps=2", "objective.disc_start=0")
    training.fit(cfg, WithoutFirst(cfg), VideoDataModule(cfg))
    names = ["loss", "grad_norm", "loss_discriminator", "grad_norm_discriminator"]
    of_model = logged(tmp_path, [f"train/{name}" for name in names[:2]])
    of_discriminator = logged(tmp_path, [f"train/{name}" for name in names[2:]])
    assert (sorted(of_model), sorted(of_discriminator)) == ([1], [0, 1])


@pytest.mark.parametrize("count", [2, 4])
def test_micro_batches_give_the_losses_of_a_whole_batch(videos: Path, tmp_path: Path, count: int) -> None:
    same = [NO_DROPOUT, "data.batch_size=4", "objective.entropy_weight=0", "trainer.max_steps=4", *PLAIN]
    same.append("optimizer.lr=1e-4")  # larger steps soon turn rounding into another code
    fit(config(videos, tmp_path / "whole", *same))
    fit(config(videos, tmp_path / "split", *same, f"accumulate={count}"))
    names = ["train/loss", "train/grad_norm", "train/psnr"]
    whole, split = logged(tmp_path / "whole", names), logged(tmp_path / "split", names)
    assert len(whole) == 4
    for step, values in whole.items():
        assert split[step] == pytest.approx(values, rel=1e-4), step


def test_micro_batches_of_a_world_model_give_the_losses_of_a_whole_batch(store: Path, tmp_path: Path) -> None:
    plain = ["model.corruption=0.0", "model.transformer.dropout=0.0", "trainer.max_steps=4"]
    for name, count in (("whole", 1), ("split", 2)):
        run_here("world_model", settings("world_model", store, tmp_path / name, *plain, f"accumulate={count}"))
    whole, split = logged(tmp_path / "whole"), logged(tmp_path / "split")
    assert len(whole) == 4 and all(split[step] == pytest.approx(whole[step], rel=1e-4) for step in whole)


@pytest.mark.parametrize("count", [2, 4])
def test_micro_batches_with_padding_give_the_losses_of_a_whole_batch(tmp_path: Path, count: int) -> None:
    """The mean over micro-batches counted each window alike, however few of its steps exist."""
    for split in ("train", "validation"):
        write_episodes(tmp_path / "tokens", split, [2, 9, 2, 3, 8, 2])
    same = ["model.corruption=0.0", "model.transformer.dropout=0.0", "data.batch_size=4", "trainer.max_steps=4"]
    for name, parts in (("whole", 1), ("split", count)):
        overrides = settings("world_model", tmp_path / "tokens", tmp_path / name, *same, f"accumulate={parts}")
        fit_here("world_model", overrides)
    whole, split = (logged(tmp_path / name, ["train/loss", "train/grad_norm"]) for name in ("whole", "split"))
    assert len(whole) == 4
    for step, values in whole.items():
        assert split[step] == pytest.approx(values, rel=1e-4), step


class Rates(pl.Callback):
    """Records the learning rate and the weight decay of each batch."""

    def __init__(self) -> None:
        self.recorded: list[tuple[float, float]] = []

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        group = trainer.optimizers[0].param_groups[0]
        self.recorded.append((group["lr"], group["weight_decay"]))


def test_a_resumed_run_uses_the_learning_rate_of_its_config(videos: Path, tmp_path: Path) -> None:
    """PyTorch restored the old one, and the config was ignored."""
    rates = Rates()
    warm = "optimizer.warmup_steps=4"
    fit(config(videos, tmp_path, "trainer.max_steps=2", "optimizer.lr=1e-3", warm, *PLAIN), [rates])
    changed = ["optimizer.lr=4e-3", "optimizer.weight_decay=0.1"]
    fit(config(videos, tmp_path, "trainer.max_steps=5", warm, *changed, *PLAIN), [rates])
    expected = [(0.00025, 0.0), (0.0005, 0.0), (0.003, 0.1), (0.004, 0.1), (0.004, 0.1)]
    assert [pytest.approx(values) for values in expected] == rates.recorded


def test_a_run_with_a_time_limit_ends_with_a_checkpoint(videos: Path, tmp_path: Path) -> None:
    """The number of batches of such a run is infinite, which failed the conversion to an integer."""
    weights = Weights()
    cfg = config(videos, tmp_path, "trainer.max_time={seconds: 1}", "checkpoint_every=100000", *PLAIN)
    fit(cfg, [weights])
    last = training.last_checkpoint(cfg.checkpoints)
    assert last is not None and last.name == f"step-{weights.steps[-1]:08d}.ckpt"


# Averages


def test_averaged_weights_are_validated_saved_and_exported(videos: Path, tmp_path: Path) -> None:
    weights = Weights()
    cfg = config(videos, tmp_path, "trainer.max_steps=4", "ema_decay=0.75", "objective.discriminator=none")
    pl.seed_everything(0, verbose=False)
    module = TokenizerModule(cfg)
    trainer = training.fit(cfg, module, VideoDataModule(cfg), [weights])
    names = [name for name, _ in module.named_parameters()]
    average = weights.weights[0]  # the average starts as a copy
    for later in weights.weights[1:]:
        average = {name: 0.75 * average[name] + 0.25 * later[name] for name in names}
    checkpoint = training.last_checkpoint(cfg.checkpoints)
    assert checkpoint is not None
    for source, expected in (
        (VidTok.from_pretrained(checkpoint), average),
        (VidTok.from_pretrained(checkpoint, weights="ema"), average),
        (VidTok.from_pretrained(checkpoint, weights="raw"), weights.weights[-1]),
        (module.tokenizer, average),
    ):
        for name, weight in source.named_parameters():
            torch.testing.assert_close(weight, expected[f"tokenizer.{name}"], rtol=1e-5, atol=1e-6)
    # The last validation used the averaged weights.
    measured = trainer.validate(module, VideoDataModule(cfg), verbose=False)[0]
    fitted = max(logged(tmp_path, ["val/psnr"]).items())[1]
    assert measured["val/psnr"] == pytest.approx(fitted[0], abs=1e-4)


def test_restarting_a_finished_run_leaves_the_same_model(videos: Path, tmp_path: Path) -> None:
    """Lightning skips the loop and with it the copy of the averages: the raw weights were exported."""
    run = settings("tokenizer", videos, tmp_path, "trainer.max_steps=4", "ema_decay=0.9", *PLAIN)
    run_here("tokenizer", run)
    first = (tmp_path / "model" / "model.safetensors").read_bytes()
    run_here("tokenizer", run)
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == first


def test_averages_are_created_on_the_device_of_the_model(videos: Path, tmp_path: Path) -> None:
    """The callback is set up before the model is moved: with a GPU, averages stayed on the CPU."""
    cfg = config(videos, tmp_path)
    trainer = training.build_trainer(cfg)
    average, module = EMA(0.9), TokenizerModule(cfg)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(trainer.strategy), "root_device", torch.device("meta"))
        average.setup(trainer, module, "fit")
    assert average._average_model is not None
    assert {p.device.type for p in average._average_model.parameters()} == {"meta"}


@pytest.mark.parametrize(
    ("first", "then", "message"),
    [
        ("ema_decay=0.9", "ema_decay=null", "ema_decay must be as in the run so far, set, got not set"),
        ("ema_decay=null", "ema_decay=0.9", "ema_decay must be as in the run so far, not set, got set"),
        ("trained=all", "trained=decoder", "trained must be as in the run so far, all, got decoder"),
        ("optimizer.muon_lr=null", "optimizer.muon_lr=0.1", "optimizer.muon_lr must be as .*, not set, got set"),
        (
            "objective.discriminator=none",
            "objective.discriminator=3d",
            "discriminator must be as .*, none, got",
        ),
        (
            "objective.learn_logvar=true",
            "objective.learn_logvar=false",
            "learn_logvar must be as .*, set, got",
        ),
    ],
)
def test_a_run_resumes_only_with_the_settings_that_its_checkpoints_depend_on(
    videos: Path, tmp_path: Path, first: str, then: str, message: str
) -> None:
    """Without averaging, training resumed from the averages as if they were the weights; others failed in PyTorch."""
    fit(config(videos, tmp_path, "trainer.max_steps=1", *PLAIN, first))
    with pytest.raises(ValueError, match=message):
        fit(config(videos, tmp_path, "trainer.max_steps=2", *PLAIN, then))


# Decoder only


@pytest.mark.parametrize("regularizer", ["fsq", "kl"])
def test_a_frozen_encoder_keeps_ids_and_latents_bit_for_bit(videos: Path, tmp_path: Path, regularizer: str) -> None:
    """With averaged weights, whose usual formula rounds, weight decay, dropout and a discriminator."""
    cfg = config(
        videos,
        tmp_path,
        "trainer.max_steps=5",
        "trained=decoder",
        "ema_decay=0.9",
        "objective.disc_start=2",
        "optimizer={lr: 1.0e-2, weight_decay: 0.1}",
        *(["preset=vidtok_kl_causal_488_4chn"] if regularizer == "kl" else []),
    )
    probe = torch.rand(1, 3, 9, 16, 16) * 2 - 1
    pl.seed_everything(cfg.seed, verbose=False)
    module = TokenizerModule(cfg)
    before = module.tokenizer.eval().encode(probe)
    decoded = module.tokenizer.decode(before.latents)
    module.train()
    assert not any(layer.training for layer in module.tokenizer.encoder.modules()) and module.tokenizer.decoder.training
    training.fit(cfg, module, VideoDataModule(cfg))
    checkpoint = training.last_checkpoint(cfg.checkpoints)
    assert checkpoint is not None
    for tokenizer in (
        module.tokenizer.eval(),
        *(VidTok.from_pretrained(checkpoint, weights=w) for w in ("ema", "raw")),
    ):
        after = tokenizer.encode(probe)
        assert torch.equal(after.latents, before.latents)
        if regularizer == "fsq":
            assert after.indices is not None and before.indices is not None
            assert torch.equal(after.indices, before.indices)
        assert not torch.allclose(tokenizer.decode(before.latents), decoded, atol=1e-3)


def test_a_frozen_encoder_that_a_foreign_loop_changes_is_refused(videos: Path, tmp_path: Path) -> None:
    cfg = config(videos, tmp_path, "trained=decoder", "objective.discriminator=none")
    module = TokenizerModule(cfg)
    batch = torch.rand(1, 3, 9, 16, 16) * 2 - 1
    before = module.tokenizer.encode(batch).latents

    def step(decay: float) -> None:
        optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2, weight_decay=decay)
        for loss in module.losses(batch, step=0):
            assert loss.value is not None
            loss.value.backward()
        optimizer.step()

    module.requires_grad_(True).train()
    step(0.1)
    assert torch.equal(module.tokenizer.encode(batch).latents, before)
    saved = module.state_dict()
    for parameter in module.tokenizer.encoder.parameters():
        parameter.data.mul_(0.99)
    message = r"TokenizerModule: .* frozen encoder must stay as they were, but conv_in\.conv\.weight has other values"
    for call in (lambda: step(0.1), module.check_frozen, lambda: module.on_save_checkpoint({})):
        with pytest.raises(ValueError, match=message):
            call()
    module.load_state_dict(saved)  # shares the changed weights, which are then those of the resumed run
    module.check_frozen(values=True)


# NaN and infinite losses


class Spoiled(TokenizerModule):
    """The third batch has a NaN loss."""

    def losses(self, batch: VideoBatch | Tensor, step: int) -> Iterator[Loss]:
        for loss in super().losses(batch, step):
            yield loss if step != 2 or loss.value is None else replace(loss, value=loss.value * float("nan"))


def test_a_nan_loss_stops_the_run_with_the_clips_and_a_dump(videos: Path, tmp_path: Path) -> None:
    cfg = config(videos, tmp_path, "trainer.max_steps=6", "checkpoint_every=1", *PLAIN)
    with pytest.raises(
        NonFiniteError, match=r"NaN or infinite loss_generator in batch 2, on .*\.mp4.*step-00000002-process-0\.pt"
    ):
        training.fit(cfg, Spoiled(cfg), VideoDataModule(cfg))
    (dump,) = (tmp_path / "non_finite").iterdir()
    content = torch.load(dump, weights_only=True)
    assert content["step"] == 2 and len(content["origins"]) == 2 and content["batch"]["video"].shape[0] == 2
    values = Spoiled(cfg).reproduce(dump)
    assert values["loss_generator"] != values["loss_generator"]
    # The last checkpoint is from before that batch.
    last = training.last_checkpoint(cfg.checkpoints)
    assert last is not None and last.name == "step-00000002.ckpt"
    assert all(weight.isfinite().all() for weight in VidTok.from_pretrained(last).parameters())


def test_a_dump_reproduces_the_exact_loss(store: Path, tmp_path: Path) -> None:
    """From the weights and random numbers of that step, with dropout, corruption and micro-batches."""
    seen: list[float] = []

    class Failing(WorldModelModule):
        def losses(self, batch: TensorDict, step: int) -> Iterator[Loss]:
            for loss in super().losses(batch, step):
                assert loss.value is not None
                seen.append(loss.value.item())
                yield replace(loss, value=loss.value / 0) if step == 1 else loss

    cfg = configure("world_model", settings("world_model", store, tmp_path, "trainer.max_steps=3", "accumulate=2"))
    assert isinstance(cfg, WorldModelRunConfig)
    with pytest.raises(NonFiniteError, match=r"0\.mp4, latent steps \d+ to \d+|1\.mp4|2\.mp4"):
        training.fit(cfg, Failing(cfg), TokenDataModule(cfg))
    assert len(seen) == 4
    (dump,) = (tmp_path / "non_finite").iterdir()
    assert WorldModelModule(cfg).reproduce(dump)["loss_model"] == pytest.approx((seen[2] + seen[3]) / 2, rel=1e-6)


class Overflowing(TokenizerModule):
    """The third batch has an infinite reconstruction."""

    def losses(self, batch: VideoBatch | Tensor, step: int) -> Iterator[Loss]:
        factor = float("inf") if step == 2 else 1.0
        hook = self.tokenizer.decoder.register_forward_hook(lambda decoder, inputs, output: output * factor)
        try:
            yield from super().losses(batch, step)
        finally:
            hook.remove()


@pytest.mark.parametrize("start", [0, 4])
def test_a_skipped_batch_does_not_spoil_later_ones(videos: Path, tmp_path: Path, start: int) -> None:
    """It had entered LeCAM's averages and the batch norm statistics, so that all later batches were skipped."""
    cfg = config(videos, tmp_path, "trainer.max_steps=7", "non_finite=skip", f"objective.disc_start={start}")
    module = Overflowing(cfg)
    training.fit(cfg, module, VideoDataModule(cfg))
    assert module.skipped_steps == 1
    assert all(value.isfinite().all() for value in module.state_dict().values())


def test_a_skipped_batch_is_counted_and_changes_nothing(
    videos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    weights = Weights()
    skip = ["non_finite=skip", "objective.disc_start=0", "checkpoint_every=4"]
    cfg = config(videos, tmp_path, "trainer.max_steps=4", *skip)
    with caplog.at_level(logging.WARNING, logger="vidtok_plugin"):
        training.fit(cfg, Spoiled(cfg), VideoDataModule(cfg), [weights])
    assert weights.changed("tokenizer.") == [True, False, True]
    assert weights.changed("objective.discriminator.") == [True, False, True]
    assert "Skipped a step: NaN or infinite loss_generator, loss_discriminator in batch 2, on " in caplog.text
    assert ".mp4" in caplog.text
    assert logged(tmp_path, ["train/skipped_steps"]) == {2: (1.0,), 3: (1.0,)}
    fit(config(videos, tmp_path, "trainer.max_steps=5", *skip))
    assert logged(tmp_path, ["train/skipped_steps"])[4] == (1.0,)


def test_unreadable_videos_are_counted_in_the_metrics(videos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "videos"
    folder.mkdir()
    for path in videos.glob("*.mp4"):
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "broken.mp4").write_bytes(b"no video")
    fit(config(folder, tmp_path / "run", "trainer.max_steps=2", "data.max_unreadable_fraction=0.3", *PLAIN))
    assert logged(tmp_path / "run", ["train/unreadable_videos"]) == {0: (1.0,), 1: (1.0,)}


# On a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", ["false", "true"])
def test_training_and_resumption_on_a_gpu_in_bfloat16(videos: Path, tmp_path: Path, compiled: str) -> None:
    overrides = [
        "trainer.accelerator=gpu",
        "trainer.devices=1",
        "trainer.precision=bf16-mixed",
        "activation_checkpointing=true",
        f"compile={compiled}",
        "ema_decay=0.9",
        "objective.disc_start=1",
    ]
    module = fit(config(videos, tmp_path, "trainer.max_steps=3", *overrides))
    assert module.objective.discriminator is not None
    fit(config(videos, tmp_path, "trainer.max_steps=5", *overrides))
    losses = logged(tmp_path, ["train/loss", "train/psnr"])
    assert sorted(losses) == list(range(5)) and all(value == value for values in losses.values() for value in values)


@pytest.mark.parametrize(("fast", "precision"), [(True, "bf16-mixed"), (False, "32-true")])
def test_automatic_precision_is_bfloat16_where_that_is_fast(
    videos: Path, tmp_path: Path, fast: bool, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vidtok_plugin.training.runs.has_fast_bfloat16", lambda accelerator: fast)
    cfg = config(videos, tmp_path, *PLAIN, "trainer.max_steps=1", "trainer.precision=auto")
    assert training.runs.build_trainer(cfg).precision == precision


# Mistakes


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["objective.discriminator=2d"], "data.height and data.width must be at least 24 .*, got 16 and 16"),
        (["accumulate=3"], "data.batch_size must be a multiple of accumulate, 3, got 2"),
        (["accumulate=0"], "accumulate must be 1 or more, got 0"),
        (["keep_checkpoints=0"], "keep_checkpoints must be 1 or more, got 0"),
        (["ema_decay=1.0"], "ema_decay must be above 0.5 and below 1, or null, got 1.0"),
        (["trainer.precision=16-mixed"], "trainer.precision must be auto, 32-true or bf16-mixed, got 16-mixed"),
        (["trainer.precision=bf16-true"], "trainer.precision must be auto, 32-true or bf16-mixed, got bf16-true"),
        (["trained=encoder"], r"trained .*must be one of all, decoder"),
    ],
)
def test_invalid_settings_are_refused(videos: Path, tmp_path: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(videos, tmp_path, *overrides)
