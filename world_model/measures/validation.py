"""Validation: measures a world model in three regimes, on the held-out split of its store and on recordings."""

from collections.abc import Sequence
from dataclasses import replace

from vidtok_plugin.adapter.adapter import TokenizerAdapter
from vidtok_plugin.common.config import to_dict
from vidtok_plugin.common.progress import progress_bar
from vidtok_plugin.metrics.fvd import I3D, I3D_URL
from vidtok_plugin.metrics.lpips_weights import VGG_URL, load_lpips
from vidtok_plugin.store.reader import TokenStore
from vidtok_plugin.video.episode import Episode
from world_model.data import TokenDataConfig, TokenDataModule
from world_model.measures.baselines import Baselines
from world_model.measures.config import MeasuresConfig
from world_model.measures.drift import free_running, play_from_episodes, play_from_store
from world_model.measures.futures import prompt_then_free
from world_model.measures.prompts import Prompts, held_out_prompts, recordings, room_for
from world_model.measures.report import Measured, Report
from world_model.measures.teacher_forcing import teacher_forced
from world_model.model import WorldModel

NO_EPISODES = (
    "a token store holds no video to compare with; pass a folder of held-out recordings as measures.episodes=FOLDER."
)
NO_LPIPS = f"it needs a network; download {VGG_URL} and pass the file as measures.lpips_vgg=FILE."
NO_FVD = f"it needs a network; download {I3D_URL} and pass the file as measures.i3d=FILE."
FUTURE_MEASURES = ("psnr", "ssim", "lpips", "fvd", "action_delta_psnr")


class Validation:
    """Measures a world model: one method per regime, and `report` for all of them.

    Example:
        cfg = load_config(WorldModelRunConfig, ["runs/demo/world_model/config.yaml"])
        report = Validation(model, adapter, cfg.data, cfg.measures).report("my model")
        report.regimes["prompt_then_free"].values["psnr_by_frame"]
    """

    def __init__(
        self,
        model: WorldModel,
        adapter: TokenizerAdapter,
        data: TokenDataConfig,
        cfg: MeasuresConfig,
        *,
        progress: bool = False,
    ) -> None:
        """Check everything that can be checked before the slow part starts.

        Raises:
            FileNotFoundError: a split, a folder or the file of a network is missing.
            ValueError: the settings, the recordings or the adapter don't fit the model.
        """
        cfg.check_fits(model.tokens.temporal_factor)
        self.model, self.adapter, self.cfg, self.data = model, adapter, cfg, data
        self.train = TokenStore(data.store, data.train)
        self.held_out = TokenStore(data.store, data.validation)
        self.train.check(adapter)
        self.episodes: Sequence[Episode] | None = None
        if cfg.episodes is not None:
            acts = model.tokens.actions.kind != "none"
            states = model.state_head is not None
            found = recordings(cfg.episodes, with_actions=acts, with_state=states, camera=cfg.camera)
            self.episodes = [model.tokens.prepare(episode) for episode in found]
            longest = max(cfg.future_frames, cfg.drift_frames)
            if not room_for(self.episodes, cfg.prompt_frames + longest):
                raise ValueError(
                    f"validate: no recording in {cfg.episodes} has {cfg.prompt_frames + longest} frames (a prompt and "
                    "its future); lower measures.drift_frames, or use longer recordings."
                )
        self.lpips = None if cfg.lpips_vgg is None else load_lpips(cfg.lpips_vgg).to(model.device)
        self.i3d = None if cfg.i3d is None else I3D(cfg.i3d, model.device)
        self._bar = progress_bar(progress)

    def report(self, source: str) -> Report:
        """Measure in all regimes; `source` says in the report where the model came from."""
        with self._bar:
            return Report(
                source=source,
                settings={"measures": to_dict(self.cfg), "data": to_dict(self.data)},
                regimes={
                    "teacher_forced": self.teacher_forced(),
                    "prompt_then_free": self.prompt_then_free(),
                    "free_running": self.free_running(),
                },
            )

    def teacher_forced(self) -> Measured:
        """Cross entropy and accuracy over the validation windows."""
        data = TokenDataModule(self.data)
        data.setup("validate")
        batches = data.val_dataloader()
        task = self._bar.add_task("teacher forced: windows", total=len(batches.dataset))  # type: ignore[arg-type]
        sizes = self.model.factor_sizes
        baselines = None if sizes is None else Baselines.fit_store(self.train, sizes)
        result = teacher_forced(self.model, batches, baselines, advance=lambda count: self._bar.advance(task, count))
        return result.measured()

    def prompt_then_free(self) -> Measured:
        """Rollouts from recorded prompts, compared with the real futures."""
        if self.episodes is None:
            return Measured(values={}, not_measured=dict.fromkeys(FUTURE_MEASURES, NO_EPISODES))
        cfg = self.cfg
        prompts = self._prompts(self.episodes, cfg.prompts, cfg.future_frames)
        task = self._bar.add_task("prompt, then free: prompts", total=len(prompts))
        result = prompt_then_free(
            self.model,
            self.adapter,
            prompts,
            sampler=cfg.sampler,
            decoding=cfg.decoding,
            lpips=self.lpips,
            i3d=self.i3d,
            batch_size=cfg.rollouts_at_once,
            advance=lambda count: self._bar.advance(task, count),
        )
        missing = {name: why for name, why in (("lpips", NO_LPIPS), ("fvd", NO_FVD)) if not self._has(name)}
        return replace(result, not_measured={**missing, **result.not_measured}).measured()

    def free_running(self) -> Measured:
        """Long rollouts, compared with real play: recordings, or else the store's held-out tokens."""
        cfg, device = self.cfg, self.model.device
        if self.episodes is not None:
            prompts = self._prompts(self.episodes, cfg.drift_rollouts, cfg.drift_frames)
            starts, real = play_from_episodes(
                self.adapter, prompts, cfg.drift_segment, device, batch_size=cfg.rollouts_at_once
            )
        else:
            starts, real = play_from_store(
                self.adapter,
                self.held_out,
                rollouts=cfg.drift_rollouts,
                prompt_frames=cfg.prompt_frames,
                num_frames=cfg.drift_frames,
                segment_frames=cfg.drift_segment,
                device=device,
            )
        task = self._bar.add_task("free running: rollouts", total=len(starts.prompt))
        result = free_running(
            self.model,
            self.adapter,
            starts,
            real,
            self.train,
            num_frames=cfg.drift_frames,
            segment_frames=cfg.drift_segment,
            real_source=str(cfg.episodes or f"{self.held_out.folder}, split {self.held_out.split}"),
            sampler=cfg.sampler,
            decoding=cfg.decoding,
            batch_size=cfg.rollouts_at_once,
            advance=lambda count: self._bar.advance(task, count),
        )
        return result.measured()

    def _prompts(self, episodes: Sequence[Episode], max_prompts: int, future_frames: int) -> Prompts:
        length = self.cfg.prompt_frames + future_frames
        prompts = held_out_prompts(
            episodes,
            count=min(max_prompts, room_for(episodes, length)),
            prompt_frames=self.cfg.prompt_frames,
            future_frames=future_frames,
        )
        return prompts if self.model.tokens.actions.kind != "none" else replace(prompts, actions=None)

    def _has(self, network: str) -> bool:
        return (self.lpips if network == "lpips" else self.i3d) is not None
