"""A latent step of a world model as programs of `torch.export`, for runtimes without this package.

Two programs share a state, which goes in and comes out: `read` takes a step that is given, such as a prompt's, and
`draw` draws the next one by given random numbers. The context rolls: a step sees the `max_steps - 1` before it.

Shapes: l layers, b rollouts, r rows of the model (2 b with guidance, else b), k heads, e width of a head, H W rows and
columns, n = H * W positions of a step, p values of a patch, f frames a step, a components of an action, u random
numbers of a step, m = max_steps - 1.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.nn import functional as F

from world_model.actions import GroupedActions
from world_model.decoding import Decoding
from world_model.generation.drawing import GroupDrawing, make_drawing
from world_model.generation.precision import in_decoding_precision
from world_model.heads.sampler import Sampler
from world_model.inputs.positions import window_rotation
from world_model.model import WorldModel
from world_model.transformer.cache import Segment, TransformerCache
from world_model.transformer.rotary import Rotation

State = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class ExportedWorld:
    """The programs of `export_world`, and the state to begin with.

    `read.module()(step, actions, state)` gives the state after a given step (b, H, W[, p]).
    `draw.module()(actions, noise, state)` draws the next step, by `noise` (b, u) float32, uniform in [0, 1). It gives
    a dict of `tokens` (b, H, W[, p]), of `rewards` (b, f) and `terminated` (b,) if the model predicts them, and of the
    `state` after the step.

    `actions` are the step's, (b, f) int64 or (b, f, a) float32, one for each frame, or None for a model without. Those
    of a rollout's first step are ignored.
    """

    read: ExportedProgram
    draw: ExportedProgram
    # keys and values (l, r, k, m n, e) of the newest steps, newest last; the newest step (b, H, W[, p]); steps (1,)
    # int64, how many were read and drawn
    state: State

    @property
    def noise_per_step(self) -> int:
        """Random numbers u that `draw` takes for each rollout."""
        return int(self.draw.example_inputs[0][1].shape[1])


def export_world(
    model: WorldModel, *, batch: int = 1, sampler: Sampler | None = None, decoding: Decoding | None = None
) -> ExportedWorld:
    """Export reading and drawing a latent step, for `batch` rollouts, on the model's device.

    The batch, the sampler and the order are part of the programs, and so are all calls of the transformer that a step
    takes: with `Decoding(order="diagonal")` they are a fraction of raster order's. Weights are saved in each program.

    Raises:
        ValueError: the model has states or sees a single step, the sampler does not fit it, or the decoding asks for
            what is not exported: an exact context, guessed tokens, compiled calls.

    Example:
        exported = export_world(model, decoding=Decoding(order="diagonal"), sampler=Sampler(temperature=0.7))
        torch.export.save(exported.draw, "draw.pt2")
        draw = torch.export.load("draw.pt2").module()
    """
    sampler, decoding = sampler or Sampler(), decoding or Decoding()
    _check(model, batch, sampler, decoding)
    model = in_decoding_precision(model, decoding)
    reads, draws = _Read(model, sampler).eval(), _Draw(model, sampler, decoding).eval()
    spec, f, device = model.tokens, model.tokens.temporal_factor, model.device
    cache = model.init_cache(2 * batch if sampler.guided else batch, steps=model.config.max_steps - 1)
    shape = (
        (batch, spec.height, spec.width) if spec.patch_dim is None else (batch, spec.height, spec.width, spec.patch_dim)
    )
    step = torch.zeros(shape, dtype=torch.int64 if spec.patch_dim is None else model.dtype, device=device)
    steps = torch.zeros(1, dtype=torch.int64, device=device)
    state = {"keys": cache.own.keys, "values": cache.own.values, "newest": step, "steps": steps}
    actions: Tensor | None = None
    if spec.actions.kind == "discrete":
        actions = torch.zeros(batch, f, dtype=torch.int64, device=device)
    elif spec.actions.kind != "none":
        actions = torch.zeros(batch, f, spec.actions.size, device=device)
    noise = torch.zeros(batch, draws.drawing.noise_per_step, device=device)
    with torch.no_grad():
        return ExportedWorld(
            read=torch.export.export(reads, (step.clone(), actions, state)),
            draw=torch.export.export(draws, (actions, noise, state)),
            state=state,
        )


def _check(model: WorldModel, batch: int, sampler: Sampler, decoding: Decoding) -> None:
    if batch < 1:
        raise ValueError(f"export_world: batch must be at least 1, got {batch}.")
    if model.config.max_steps < 2:
        raise ValueError("export_world: the model's max_steps must be at least 2 to continue a past, got 1.")
    if model.state_head is not None:
        raise ValueError("export_world: the model must have no states (model.state); roll it out in Python.")
    if decoding.context == "exact" or decoding.context_shift is not None:
        raise ValueError("export_world: an exported context rolls; leave context_shift out, or set context to rolling.")
    if decoding.compiled or decoding.draft_tokens is not None:
        name = "compiled" if decoding.compiled else "draft_tokens"
        raise ValueError(f"export_world: {name} is not exported; leave it out.")
    if decoding.precision == "int8":
        raise ValueError("export_world: precision int8 is not exported; take another.")
    model.head.check_sampler(sampler)
    if sampler.guided and (model.tokens.actions.kind == "none" or model.config.action_dropout == 0):
        raise ValueError(
            f"export_world: guidance {sampler.guidance} needs a model that was trained with actions, and with "
            "model.action_dropout above 0; leave it out."
        )


class _Step(nn.Module):
    """What both programs do: make the cache of a step from the state, and the state after it."""

    def __init__(self, model: WorldModel, sampler: Sampler) -> None:
        super().__init__()
        self.model, self.sampler = model, sampler
        self.past = (model.config.max_steps - 1) * model.tokens.tokens_per_step  # positions m n

    def cache_of(self, state: State) -> TransformerCache:
        """A cache of the past with room for a step; the past ends where the step begins."""
        n = self.model.tokens.tokens_per_step
        keys, values = (F.pad(state[name], (0, 0, 0, n)) for name in ("keys", "values"))
        rotation = window_rotation(self.model.config, 1, state["steps"]).to(self.model.transformer.rotary_cos)
        own = [F.pad(table, (0, 0, self.past, 0)) for table in (rotation.cos, rotation.sin)]  # the past has its own
        begin = (self.past - state["steps"] * n).clamp(min=0).expand(keys.shape[1])
        return TransformerCache(
            own=Segment(keys, values), length=self.past, begin=begin, rotation=Rotation(own[0], own[1])
        )

    def state_after(self, step: Tensor, cache: TransformerCache, state: State) -> State:
        """The state after a step (b, H, W[, p]) whose keys and values are in its cache."""
        n = self.model.tokens.tokens_per_step
        keys, values = (held[:, :, :, n:].clone() for held in cache.own)
        return {"keys": keys, "values": values, "newest": step.clone(), "steps": state["steps"] + 1}

    def row_actions(self, actions: Tensor | None) -> GroupedActions | None:
        if actions is None:
            return None
        known = torch.ones(actions.shape[:2], dtype=torch.bool, device=actions.device)
        grouped = GroupedActions(values=actions[:, None], known=known[:, None])
        return grouped.and_unknown() if self.sampler.guided else grouped


class _Read(_Step):
    def forward(self, step: Tensor, actions: Tensor | None, state: State) -> State:
        cache, rows = self.cache_of(state), self.sampler.model_rows
        acts, newest = self.row_actions(actions), rows(state["newest"])
        self.model.prefill(rows(step)[:, None], acts, cache, newest, validate=False)
        return self.state_after(step, cache, state)


class _Draw(_Step):
    def __init__(self, model: WorldModel, sampler: Sampler, decoding: Decoding) -> None:
        super().__init__(model, sampler)
        self.drawing = make_drawing(model, sampler, decoding)
        if isinstance(self.drawing, GroupDrawing):  # constants that are views of one tensor cannot be saved
            groups = self.drawing.groups
            self.drawing.groups = [replace(group, positions=group.positions.clone()) for group in groups]

    def forward(self, actions: Tensor | None, noise: Tensor, state: State) -> dict[str, Tensor | State]:
        cache, rows, model = self.cache_of(state), self.sampler.model_rows, self.model
        acts, newest = self.row_actions(actions), rows(state["newest"])
        context = replace(model.step_context(newest, acts, cache), blocks=None)
        before = state["newest"].flatten(1, 2)
        drawn = self.drawing.draw(before, context, cache, noise)
        step = drawn.tokens.unflatten(1, (model.tokens.height, model.tokens.width))
        if not self.drawing.fills_cache:
            model.prefill(rows(step)[:, None], acts, cache, newest, validate=False)
        result: dict[str, Tensor | State] = {"tokens": step, "state": self.state_after(step, cache, state)}
        if drawn.hidden is not None:
            outcomes = model.step_outcomes(drawn.hidden, drawn.tokens, before, context.tables)
            for name in ("rewards", "terminated"):
                if outcomes is not None and (values := getattr(outcomes, name)) is not None:
                    result[name] = values
        return result
