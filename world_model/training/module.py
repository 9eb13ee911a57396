"""WorldModelModule: optimisation and logging of a world model, for Lightning's Trainer."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from tensordict import TensorDict
from torch import Tensor, nn

from vidtok_plugin.adapter.adapter import TokenizerAdapter
from vidtok_plugin.common.config import to_dict
from vidtok_plugin.common.saved_config import checked_config
from vidtok_plugin.store.adapter import stored_adapter
from vidtok_plugin.store.metadata import StoreMetadata, read_metadata, written_by_another
from vidtok_plugin.store.reader import TokenStore
from vidtok_plugin.training import RunConfig
from vidtok_plugin.training.module import Loss, TrainingModule
from vidtok_plugin.training.optimization import OptimizerConfig, configure_optimizers
from world_model.architecture import OutcomeConfig, StateConfig, WorldModelConfig
from world_model.data import TokenDataConfig, token_spec, window_actions, window_outcomes, window_state, window_tokens
from world_model.measures.config import MeasuresConfig
from world_model.model import WorldModel
from world_model.rollout.worlds import world_folder
from world_model.window_scores import WindowLosses

logger = logging.getLogger(__name__)

TRAINING_RATES = ("corruption", "own_draws", "action_dropout")  # of a WorldModelConfig


@dataclass(frozen=True, kw_only=True)
class WorldModelRunConfig(RunConfig):
    """Everything a run needs to train a world model on a token store.

    With `pretrained`, the model starts from the weights of a saved world, whose tokens the store must hold. `model` may
    be left out then, or have the same architecture with other rates of corruption, own draws and dropped actions, and
    with a head of outcomes (`model.outcomes`) or of states (`model.state`) that the world lacks.
    """

    pretrained: str | None = None  # a source for `load_world`: a shipped world, a folder or a hub repository
    model: WorldModelConfig = WorldModelConfig()
    data: TokenDataConfig
    optimizer: OptimizerConfig = OptimizerConfig(
        lr=2e-3, betas=(0.9, 0.95), weight_decay=0.05, warmup_steps=50, gradient_clip=1.0
    )
    measures: MeasuresConfig = MeasuresConfig()  # for `world-model validate`
    sharded: bool = False  # FSDP2: shard weights, gradients and optimizer state over trainer.devices processes
    output: Path = Path("runs/world_model")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_micro_batches(self.data.batch_size)
        if self.sharded:
            self._check_sharded()
        if self.data.window_steps > self.model.max_steps and self.model.prediction == "masked":
            raise ValueError(
                "WorldModelRunConfig: data.window_steps must be at most model.max_steps for a masked model, "
                f"{self.model.max_steps}, got {self.data.window_steps}."
            )

    def _check_sharded(self) -> None:
        if not isinstance(self.trainer.get("devices"), int) or self.trainer["devices"] < 1:
            raise ValueError(
                "WorldModelRunConfig: trainer.devices must be a number of processes with sharded=true, got "
                f"{self.trainer.get('devices')}; set for example trainer.devices=2."
            )
        for key, value, why in (
            ("trainer.strategy", self.trainer.get("strategy"), "sharding sets it"),
            ("ema_decay", self.ema_decay, "averaging needs whole weights"),
            ("optimizer.muon_lr", self.optimizer.muon_lr, "Muon needs whole matrices"),
        ):
            if value is not None:
                raise ValueError(f"WorldModelRunConfig: {key} must be left out with sharded=true ({why}), got {value}.")

    @property
    def num_processes(self) -> int:
        """The number of processes of a sharded run."""
        return int(self.trainer["devices"]) * int(self.trainer.get("num_nodes", 1))


def continued_model(
    saved: WorldModel,
    source: str,
    config: WorldModelConfig,
    metadata: StoreMetadata,
    window_steps: int,
    state_size: int | None = None,
) -> WorldModel:
    """The world model `saved` in `source`, to be trained further on a store with the training rates of `config`.

    window_steps: of its windows. state_size: components of the store's states.

    Raises:
        ValueError: the store has tokens of another tokenizer or other actions, or `config` has another architecture.
    """
    if saved.token_hash != metadata.token_hash:
        raise ValueError(
            f"WorldModelModule: the store must hold the tokens that pretrained={source} was trained on, "
            f"{saved.token_hash}, got {metadata.token_hash}; write it with the adapter of that world."
        )
    if config == WorldModelConfig():
        config = saved.config
    if state_size is None and saved.config.state is not None:
        state_size = saved.config.state.size
    config = with_state_size(config.for_tokens(token_spec(metadata)), state_size)
    config = trained_on(config, window_steps)
    ours, theirs = to_dict(config), to_dict(saved.config)
    may_differ = (*TRAINING_RATES, "trained_steps", "outcomes", "state")
    differing = [key for key in ours if ours[key] != theirs[key] and key not in may_differ]
    if saved.config.outcomes is not None and not _same_head(config.outcomes, saved.config.outcomes):
        differing.append("outcomes")
    if saved.config.state is not None and not _same_state(config.state, saved.config.state):
        differing.append("state")
    if bool(config.corruption) != bool(saved.config.corruption):
        differing.append("corruption")  # a model trained with it has an embedding of the fraction
    if differing:
        raise ValueError(
            f"WorldModelModule: model must have the architecture of pretrained={source}, but differs in "
            f"{', '.join(f'model.{key} ({ours[key]}, not {theirs[key]})' for key in differing)}; leave model "
            "out to use it."
        )
    model = WorldModel(config, saved.token_hash)
    weights = saved.state_dict()
    # New heads start from their own initialization.
    new = {name: tensor for name, tensor in model.state_dict().items() if name not in weights}
    model.load_state_dict(weights | new)
    return model


def _same_head(ours: OutcomeConfig | None, theirs: OutcomeConfig) -> bool:
    """Whether two heads of outcomes have the same weights; those of their losses may differ."""
    return ours is not None and theirs == replace(
        ours, reward_weight=theirs.reward_weight, end_weight=theirs.end_weight
    )


def _same_state(ours: StateConfig | None, theirs: StateConfig) -> bool:
    """Whether two models read and predict states by the same weights."""
    return ours is not None and theirs == replace(ours, weight=theirs.weight, dropout=theirs.dropout)


def trained_on(config: WorldModelConfig, window_steps: int) -> WorldModelConfig:
    """The config of a model that is trained on windows of so many latent steps."""
    return replace(config, trained_steps=window_steps if window_steps > config.max_steps else None)


def with_state_size(config: WorldModelConfig, size: int | None) -> WorldModelConfig:
    """The config for states of `size` components, those of a store; a ValueError if it was set for others."""
    state = config.state
    if state is None or size is None or state.size == size:
        return config
    if state.size is not None:
        raise ValueError(
            f"WorldModelModule: model.state.size must be {size}, the components of the store's states, got "
            f"{state.size}; leave it out."
        )
    return replace(config, state=replace(state, size=size))


def check_state(store: TokenStore, *, learned_before: bool) -> None:
    """Check that a store has states for a model that predicts them; those of one that has `learned_before` may be
    missing.

    Raises:
        ValueError: there are no states, and the model has yet to learn them.
    """
    if store.state_size is not None:
        return
    if not learned_before:
        raise ValueError(
            f"WorldModelModule: model.state needs episodes that have states, and {store.folder}, split {store.split}, "
            "has none; tokenize episodes with states (docs/recordings.md; `tokenize --update` adds them to a store "
            "from before it kept states), or leave model.state out."
        )
    logger.warning("%s has no states; the model keeps what it has learned of them.", store.folder)


def check_outcomes(store: TokenStore, model: WorldModel, *, learned_before: bool) -> None:
    """Check that a store has the outcomes that a model is to predict.

    What the model has `learned_before` may be missing: those weights are frozen then.

    Raises:
        ValueError: an outcome is missing that it has yet to learn, or a reward is beyond `largest_reward`.
    """
    head, config = model.outcomes, model.config.outcomes
    assert head is not None and config is not None
    for name, array, layer in (("rewards", "rewards", head.rewards), ("ends", "terminated", head.ends)):
        if layer is None or array in store.outcomes:
            continue
        if not learned_before:
            raise ValueError(
                f"WorldModelModule: model.outcomes.{name} needs episodes that have them, and {store.folder}, split "
                f"{store.split}, has none; record them (clip.rewards.npy, and terminated in the JSON) and tokenize "
                f"again, or set model.outcomes.{name}=false."
            )
        logger.warning("%s has no %s; the model keeps what it has learned of them.", store.folder, name)
        layer.requires_grad_(False)
    if not any(layer.weight.requires_grad for layer in (head.rewards, head.ends) if layer is not None):
        head.requires_grad_(False)
    largest = store.largest_reward if config.rewards else None
    if largest is not None and largest > config.largest_reward:
        raise ValueError(
            f"WorldModelModule: model.outcomes.largest_reward must be at least {largest:g}, the largest of "
            f"{store.folder}, got {config.largest_reward:g}; raise it."
        )


class WorldModelModule(TrainingModule):
    """Trains `self.model` on windows of tokens.

    The kind and sizes of the tokens come from the store. So do the mean and deviation of continuous actions: they are
    those of the training split when a run begins; a resumed run and a `pretrained` model keep their own. The loss
    covers every step of a window except the first: the cross entropy in nats per token for codes, the mean squared
    error of the flow for patches.

    Example:
        trainer.fit(WorldModelModule(cfg), TokenDataModule(cfg))
    """

    def __init__(self, cfg: WorldModelRunConfig) -> None:
        super().__init__(cfg)
        self.cfg = cfg
        metadata = read_metadata(cfg.data.store)
        saved = None if cfg.pretrained is None else WorldModel.from_pretrained(world_folder(cfg.pretrained))
        learned_state = saved is not None and saved.config.state is not None
        state_size, steps = None, cfg.data.window_steps
        if cfg.model.state is not None or learned_state:
            check_state(self._train_store, learned_before=learned_state)
            state_size = self._train_store.state_size
        if saved is None:
            config = with_state_size(cfg.model.for_tokens(token_spec(metadata)), state_size)
            self.model = WorldModel(trained_on(config, steps), metadata.token_hash)
            if self.model.action_normalization is not None:
                found = self._train_store.action_statistics()
                self.model.set_action_statistics(torch.from_numpy(found.mean), torch.from_numpy(found.std))
        else:
            self.model = continued_model(saved, str(cfg.pretrained), cfg.model, metadata, steps, state_size)
        self._prepare_state(learned_before=learned_state)
        if self.model.outcomes is not None:
            learned_before = saved is not None and saved.outcomes is not None
            check_outcomes(self._train_store, self.model, learned_before=learned_before)

    def _prepare_state(self, *, learned_before: bool) -> None:
        """Normalize states by the training split's statistics; a model that has learned them keeps its own."""
        head, normalization = self.model.state_head, self.model.state_normalization
        if head is None or normalization is None:
            return
        if not learned_before:
            found = self._train_store.state_statistics()
            normalization.set_statistics(torch.from_numpy(found.mean), torch.from_numpy(found.std))
        elif self._train_store.state_size is None:
            head.requires_grad_(False)

    def adapter(self) -> TokenizerAdapter:
        """The adapter that wrote the tokens; it is saved with the model."""
        adapter = stored_adapter(self.cfg.data.store)
        if adapter.token_hash != self.model.token_hash:
            another = written_by_another(Path(self.cfg.data.store), adapter.token_hash, str(self.model.token_hash))
            raise ValueError(f"{another} since the run opened it; restore the store that the run was trained on.")
        return adapter

    def full_weights(self) -> dict[str, Tensor]:
        """The unsharded weights by name, for saving. Every process must call it."""
        return self.model.state_dict()

    def trained_network(self) -> nn.Module:
        return self.model

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        self.check_trainable()
        steps = self.trainer.estimated_stepping_batches
        embeddings = self.model.embedding_parameters()
        return configure_optimizers(
            self.model.parameters(), self.cfg.optimizer, steps, embeddings=embeddings, bfloat16=self.mixed_bfloat16
        )

    def losses(self, batch: TensorDict, step: int) -> Iterator[Loss]:
        losses = self._losses(batch)
        statistics, total = {self.loss_name: losses.tokens}, losses.tokens
        for name, weight, loss in self._head_losses(losses):
            statistics[name] = loss
            total = total + weight * loss
        yield Loss(name="model", value=total, statistics=statistics)

    def _losses(self, batch: TensorDict) -> WindowLosses:
        tokens, actions, state = window_tokens(batch), window_actions(batch), self._state_of(batch)
        return self.model.losses(tokens, actions, batch["valid"], window_outcomes(batch), state)

    def _state_of(self, batch: TensorDict) -> Tensor | None:
        """The states of a batch of windows; None if the model reads none."""
        return None if self.model.config.state is None else window_state(batch)

    def _head_losses(self, losses: WindowLosses) -> list[tuple[str, float, Tensor]]:
        """Name in the log, weight and value of each loss of outcomes and states."""
        outcomes, state = self.model.config.outcomes, self.model.config.state
        terms: list[tuple[str, float, Tensor | None]] = []
        if outcomes is not None:
            terms.append(("reward_loss", outcomes.reward_weight, losses.rewards))
            terms.append(("end_loss", outcomes.end_weight, losses.ends))
        if state is not None:
            terms.append(("state_loss", state.weight, losses.state))
        return [(name, weight, loss) for name, weight, loss in terms if loss is not None]

    @property
    def loss_name(self) -> str:
        """The name of the loss in the log."""
        return "cross_entropy" if self.model.tokens.kind == "discrete" else "flow_loss"

    def tensors_of(self, batch: TensorDict) -> dict[str, Tensor]:
        return {str(name): batch[name] for name in batch.keys()}  # noqa: SIM118

    def batch_of(self, tensors: Mapping[str, Tensor]) -> TensorDict:
        return TensorDict(dict(tensors), batch_size=[len(tensors["valid"])])

    def sizes(self, batch: TensorDict) -> dict[str, int]:
        return {"windows": len(batch), "tokens": batch["valid"].numel() * self.model.tokens.tokens_per_step}

    def scored_count(self, batch: TensorDict) -> Tensor:
        return batch["valid"][:, 1:].sum()

    def origins(self, batch: TensorDict) -> list[str]:
        length = batch["valid"].shape[1]
        pairs = zip(batch["episode"].tolist(), batch["start"].tolist(), strict=True)
        return [
            f"{self._train_store.episodes[episode].name}, latent steps {start} to {start + length - 1}"
            for episode, start in pairs
        ]

    def optimizer_configs(self) -> list[OptimizerConfig]:
        return [self.cfg.optimizer]

    @cached_property
    def _train_store(self) -> TokenStore:
        return TokenStore(self.cfg.data.store, self.cfg.data.train)

    def validation_step(self, batch: TensorDict, batch_index: int) -> None:
        scores = self.model.score(window_tokens(batch), window_actions(batch), state=self._state_of(batch))
        weights = scores.weights * batch["valid"][:, 1:, None, None]
        count = weights.sum()
        scored = {f"val/{self.loss_name}": (scores.token_losses * weights).sum() / count}
        if scores.token_correct is not None:
            scored["val/accuracy"] = (scores.token_correct * weights).sum() / count
        if self.model.outcomes is not None or self.model.state_head is not None:
            scored |= {f"val/{name}": loss for name, _, loss in self._head_losses(self._losses(batch))}
        scored_tokens = int(batch["valid"][:, 1:].sum()) * self.model.tokens.tokens_per_step
        self.log_dict(scored, prog_bar=True, batch_size=scored_tokens, sync_dist=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["world_model"] = to_dict(self.model.config)
        checkpoint["token_hash"] = self.model.token_hash

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        written = checkpoint.get("world_model")
        if written is None:
            raise ValueError(
                "WorldModelModule: the checkpoint must be a world model's, got another kind of checkpoint."
            )
        # Checkpoints of earlier versions lack newer keys, whose defaults are what those versions did.
        config = checked_config(WorldModelConfig, written, "checkpoint")
        config = replace(config, trained_steps=self.model.config.trained_steps)  # windows may change within a run
        if config != self.model.config:
            saved, ours = to_dict(config), to_dict(self.model.config)
            keys = [key for key in ours if getattr(config, key) != getattr(self.model.config, key)]
            raise ValueError(
                "WorldModelModule: the checkpoint must have the architecture of the config, but it differs in "
                f"{', '.join(f'model.{key} ({saved[key]}, not {ours[key]})' for key in keys)}; resume with the "
                "config that it was trained with, or start again in another output folder."
            )
        trained_on = checkpoint.get("token_hash")
        if trained_on is None:
            logger.warning(
                "The checkpoint has no token hash, since an earlier version wrote it; whether the store still has the "
                "tokens that it was trained on cannot be checked."
            )
        elif trained_on != self.model.token_hash:
            raise ValueError(
                f"WorldModelModule: the store {self.cfg.data.store} must hold the tokens that the checkpoint was "
                f"trained on, {trained_on}, got {self.model.token_hash}: another tokenizer wrote it since; restore the "
                "store of that tokenizer, or start again in another output folder."
            )
