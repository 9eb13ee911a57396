"""The context window of rollouts: their newest latent steps, with keys and values in a cache.

Shapes: b rollouts, r some of them, T latent steps, H W rows and columns, n = H * W positions of a step, p values of a
patch, f frames of a step, s components of a state.
"""

from copy import copy
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from world_model.actions import GroupedActions
from world_model.heads.sampler import Sampler
from world_model.model import WorldModel
from world_model.prediction.base import StepContext
from world_model.transformer.cache import TransformerCache
from world_model.transformer.fast.prepack import Rows
from world_model.transformer.rotary import Rotation
from world_model.transformer.transformer import DecodeBlocks


class ContextWindow:
    """At most `max_steps` latent steps of each rollout, from which its next one is drawn.

    A rollout whose window is full drops its oldest `context_shift` steps, and the rest are re-prefilled as a new
    window. Each does so by its own count, so that its steps do not depend on the rest of the batch. Those that are full
    together are re-prefilled in one call. A `rolling` window drops its oldest step, and the keys of the others stay.

    In the cache, rollouts are aligned at their ends. While they all fill up together, it holds `max_steps` steps. When
    full ones keep keys, or the others do, it has room for `spare_steps` more, and the newest are moved to its front
    when it is full. Weights are looked up once for each cache or whole window. With guidance, the
    model has two rows for each rollout: with its actions, and without.
    """

    def __init__(
        self,
        model: WorldModel,
        tokens: Tensor,
        actions: GroupedActions | None,
        past_steps: Tensor,
        *,
        context_shift: int,
        rolling: bool = False,
        sampler: Sampler,
        state: Tensor | None = None,
    ) -> None:
        """`tokens` (b, T, H, W[, p]) and `state` (b, T, f, s), checked before.

        `past_steps` (b,), on the CPU: steps of each row after padding in front.
        """
        self.model, self.sampler = model, sampler
        self.validate = False if model.tokens.kind == "discrete" else None  # drawn patches may overflow, codes cannot
        self.rolling = rolling
        self.kept_steps = model.config.max_steps - context_shift
        self.spare_steps = max(1, model.config.max_steps // 2) if rolling else context_shift
        self.forked = False  # whether forks read the cache's buffers
        self.prefills = 0
        self.blocks: DecodeBlocks | None = None
        self.held = self._held_of(past_steps)  # (b,), on the CPU: steps of each row in the cache
        self.first_step = 0  # of the cache's positions, counted in steps from where the rotation is 0
        self.tokens, self.actions, self.state = self._newest_of(tokens, actions, state, self.held)
        self.cache = self._prefilled_window(None)

    def next_step(self, actions: GroupedActions | None, tokens_per_call: Rows | None) -> StepContext:
        """The context for drawing the next step under its actions; makes room for it in the cache.

        Weights are prepacked for calls of `tokens_per_call` tokens of each rollout, unless it is None.
        """
        self.make_room()
        if self.blocks is None:
            rows = tokens_per_call * self.cache.batch if isinstance(tokens_per_call, int) else tokens_per_call
            self.blocks = self.model.transformer.decode_blocks(self.cache, rows)
        return self.model.step_context(
            self._newest(), self._row_actions(actions), self.cache, self.blocks, self._newest_state()
        )

    def make_room(self) -> None:
        """Drop the oldest steps of full windows, so that another step fits; re-prefill the rest unless they roll."""
        full = (self.held == self.model.config.max_steps).nonzero()[:, 0]
        if len(full) and self.rolling:
            self.held = self.held.index_fill(0, full, self.kept_steps)
            self.cache = replace(self.cache, begin=self._begin())
        elif len(full):
            self._replace(full, *self._past_of(full), self.held.new_full((len(full),), self.kept_steps))
        if self.cache.length + self.model.tokens.tokens_per_step > self.cache.capacity:
            self._move(self.held)

    def append(
        self, step: Tensor, actions: GroupedActions | None, state: Tensor | None = None, *, in_cache: bool
    ) -> None:
        """Append a step (b, H, W[, p]) that was drawn, with its states (b, f, s). `in_cache`: drawing it wrote its keys
        and values."""
        if in_cache:
            self.cache = self.cache.advanced(self.model.tokens.tokens_per_step)
        else:
            with torch.inference_mode():
                rows = self.sampler.model_rows(step)[:, None]
                actions_of_rows, before = self._row_actions(actions), self._newest_state()
                self.cache = self.model.prefill(
                    rows,
                    actions_of_rows,
                    self.cache,
                    self._newest(),
                    None if before is None else before[:, None],
                    validate=self.validate,
                )
            self.prefills += 1
        self.tokens = torch.cat([self.tokens, step[:, None]], dim=1)[:, -self.kept_steps :]
        if self.actions is not None and actions is not None:
            self.actions = GroupedActions.cat([self.actions, actions])[-self.kept_steps :]
        if self.state is not None and state is not None:
            self.state = torch.cat([self.state, state[:, None]], dim=1)[:, -self.kept_steps :]
        self.held = self.held + 1

    def reset(
        self,
        rows: Tensor,
        tokens: Tensor,
        actions: GroupedActions | None,
        past_steps: Tensor,
        state: Tensor | None = None,
    ) -> None:
        """Let some rows (r,), all different and in order, continue other pasts: `tokens` (r, T, H, W[, p]) and `state`
        (r, T, f, s), checked before, with `past_steps` (r,) as above. The other rows go on as they are."""
        held = self._held_of(past_steps)
        self._replace(rows, *self._newest_of(tokens, actions, state, held), held)

    def fork(self, futures: int) -> "ContextWindow":
        """Windows of `futures` consecutive rollouts for each of these. They share the cache's past without a copy."""
        twin = copy(self)
        twin.cache, twin.blocks, twin.forked = self.cache.fork(futures), None, False
        twin.tokens = self.tokens.repeat_interleave(futures, dim=0)
        twin.actions = None if self.actions is None else self.actions.repeated(futures)
        twin.state = None if self.state is None else self.state.repeat_interleave(futures, dim=0)
        twin.held = self.held.repeat_interleave(futures)
        self.forked = True
        return twin

    def with_sampler(self, sampler: Sampler) -> "ContextWindow":
        """An independent window of the same steps for another sampler. They share the cache's past without a copy,
        unless guidance begins or ends."""
        twin = self.fork(1) if sampler.guided == self.sampler.guided else copy(self)
        twin.sampler = sampler
        if sampler.guided != self.sampler.guided:
            twin.held = self.held.clamp(max=self.tokens.shape[1])
            twin.cache = twin._prefilled_window(None)
        return twin

    @property
    def num_bytes(self) -> int:
        """Size of the cache's buffers and of the tokens."""
        return self.cache.num_bytes + self.tokens.numel() * self.tokens.element_size()

    def _held_of(self, past_steps: Tensor) -> Tensor:
        """How many steps of pasts are kept: all, if that leaves room for another one."""
        return past_steps.where(past_steps < self.model.config.max_steps, self.kept_steps)

    def _newest_of(
        self, tokens: Tensor, actions: GroupedActions | None, state: Tensor | None, held: Tensor
    ) -> tuple[Tensor, GroupedActions | None, Tensor | None]:
        """The last steps of pasts (r, T, H, W[, p]), as many as the longest holds."""
        longest = int(held.max())
        tokens = tokens.to(self.model.dtype) if tokens.is_floating_point() else tokens
        return (
            tokens[:, -longest:],
            None if actions is None else actions[-longest:],
            None if state is None else state[:, -longest:],
        )

    def _past_of(self, rows: Tensor) -> tuple[Tensor, GroupedActions | None, Tensor | None]:
        """The newest steps of some rows (r,), their actions and their states."""
        if len(rows) == len(self.held):
            return self.tokens, self.actions, self.state
        there = rows.to(self.model.device, non_blocking=True)
        return (
            self.tokens.index_select(0, there),
            None if self.actions is None else self.actions.rows(there),
            None if self.state is None else self.state.index_select(0, there),
        )

    def _row_actions(self, actions: GroupedActions | None) -> GroupedActions | None:
        return actions.and_unknown() if self.sampler.guided and actions is not None else actions

    def _newest(self) -> Tensor:
        return self.sampler.model_rows(self.tokens[:, -1])

    def _newest_state(self) -> Tensor | None:
        return None if self.state is None else self.sampler.model_rows(self.state[:, -1])

    # The buffers are ordinary tensors whenever they are made: compiled code distinguishes inference tensors.
    @torch.inference_mode(False)
    @torch.no_grad()
    def _replace(
        self, rows: Tensor, tokens: Tensor, actions: GroupedActions | None, state: Tensor | None, held: Tensor
    ) -> None:
        """Prefill windows (r, T, H, W[, p]) of some rows, of which `held` (r,) steps each count, and give the rows
        these instead of their own. The others keep what they have."""
        others = torch.ones_like(self.held, dtype=torch.bool).index_fill(0, rows, False)
        if not others.any():
            self.held, self.tokens, self.actions, self.state = held, tokens, actions, state
            self.cache = self._prefilled_window(self.cache)
            return
        staying = self.held[others]
        self.held = self.held.index_copy(0, rows, held)
        there = rows.to(self.model.device, non_blocking=True)
        steps = max(tokens.shape[1], self.tokens.shape[1])
        self.tokens = _padded(self.tokens, steps).index_copy(0, there, _padded(tokens, steps))
        if self.actions is not None and actions is not None:
            self.actions = self.actions.padded_in_front(steps).with_rows(there, actions.padded_in_front(steps))
        if self.state is not None and state is not None:
            self.state = _padded(self.state, steps).index_copy(0, there, _padded(state, steps))
        n = self.model.tokens.tokens_per_step
        if self.cache.shared or self.forked or self.cache.length < int(self.held.max()) * n:
            self._move(staying)
        rotation = self.model.transformer.rotation if self.cache.rotation is None else self.cache.rotation
        count = tokens.shape[1] * n
        rotation = rotation.at(slice(self.cache.length - count, self.cache.length))
        windows = self._prefilled(tokens, actions, state, held, None, rotation)
        self.cache.replace_rows(torch.cat([there, there + len(self.held)]) if self.sampler.guided else there, windows)
        self.cache = replace(self.cache, begin=self._begin())

    @torch.inference_mode(False)
    @torch.no_grad()
    def _move(self, staying: Tensor) -> None:
        """Move the newest steps of the cache to its front, as many as the longest of `staying` rows holds, and leave
        room for the longest row of all; in larger buffers, unless these are such already and nobody else reads them."""
        n, cache = self.model.tokens.tokens_per_step, self.cache
        steps, longest = self.model.config.max_steps + self.spare_steps, int(self.held.max())
        fits = cache.capacity >= steps * n and not cache.shared and not self.forked
        self.first_step += cache.length // n - longest
        moved = cache.moved(int(staying.max()) * n, longest * n, None if fits else steps * n)
        self.cache = replace(moved, rotation=self.model.rotation(steps, self.first_step))
        self.cache = replace(self.cache, begin=self._begin())
        if not fits:
            self.blocks, self.forked = None, False

    def _begin(self) -> Tensor | None:
        """Where each of the model's rows begins in the cache; None where all begin at 0."""
        n = self.model.tokens.tokens_per_step
        unused = self.cache.length - self.held * n
        return self.sampler.model_rows(unused.to(self.model.device, non_blocking=True)) if unused.any() else None

    @torch.inference_mode(False)
    @torch.no_grad()
    def _prefilled_window(self, old: TransformerCache | None) -> TransformerCache:
        """A cache of all rows' tokens, in the old one's buffers if they have the size and nobody else reads them."""
        size = self.model.config.max_steps * self.model.tokens.tokens_per_step
        reused = None if old is None or old.shared or self.forked or old.capacity > size else old
        self.blocks, self.forked, self.first_step = None, False, 0
        return self._prefilled(self.tokens, self.actions, self.state, self.held, reused, None)

    def _prefilled(
        self,
        tokens: Tensor,
        actions: GroupedActions | None,
        state: Tensor | None,
        held: Tensor,
        reused: TransformerCache | None,
        rotation: Rotation | None,
    ) -> TransformerCache:
        """A cache of windows (r, T, H, W[, p]), of which `held` (r,) steps each count; with a rotation of its own it
        has room for nothing else."""
        rows, steps = self.sampler.model_rows(tokens), tokens.shape[1]
        missing = steps - held
        padding = self.sampler.model_rows(missing.to(self.model.device, non_blocking=True)) if missing.any() else None
        if reused is not None:
            empty = self.model.emptied(reused, padding)
        else:
            empty = self.model.init_cache(len(rows), padding, steps=None if rotation is None else steps)
            empty = replace(empty, rotation=rotation)
        self.prefills += 1
        before = None
        if state is not None:
            before = torch.cat([torch.full_like(state[:, :1], torch.nan), state[:, :-1]], dim=1)
            before = self.sampler.model_rows(before)
        return self.model.prefill(rows, self._row_actions(actions), empty, past_state=before, validate=self.validate)


def _padded(tokens: Tensor, steps: int) -> Tensor:
    """Tokens (b, T, H, W[, p]) or states (b, T, f, s) with zeros in front, `steps` in all."""
    after = 2 * (tokens.ndim - 2)
    return F.pad(tokens, (0,) * after + (steps - tokens.shape[1], 0))
