"""The moments of a game: a ring of the newest, to each of which the player can go back, and the branches that grew so.

A moment that can be gone back to holds a fork of the imagination. Forks share their past, yet each keeps tensors of its
own, so only the newest have one, and only so many branches and frames are kept: memory does not grow with time.

Shapes: t h w frames and pixels, f frames per latent step, a components of a continuous action, H W rows and columns.
"""

from dataclasses import dataclass, field

import numpy as np

from world_model.play.real_game import RealStep
from world_model.rollout.imagination import Imagination


@dataclass(kw_only=True)
class Moment:
    """A latent step of a game, after which the game can go on as long as `resume` is there."""

    id: int
    frames: np.ndarray  # uint8 (f, h, w, 3)
    actions: np.ndarray | None  # (f[, a]); None for the prompt's last step, and for a world without actions
    reward: float | None  # the sum over the frames; None if the world predicts none
    score: float | None  # rewards since the prompt
    terminated: bool  # the world predicts that the game is over
    entropy: np.ndarray | None  # float32 (H, W), nats, if it was asked for
    real: RealStep | None
    resume: Imagination | None


@dataclass(kw_only=True)
class Branch:
    """One way that the game went: its moments from the prompt, or as far back as they are kept, to the newest."""

    id: int
    parent: int | None
    path: list[Moment] = field(default_factory=list)

    @property
    def tip(self) -> Moment:
        return self.path[-1]


class Timeline:
    """The branches of a game, and the moment at which it stands."""

    def __init__(self, start: Moment, *, max_moments: int, max_branches: int, max_history: int) -> None:
        """
        max_moments: that can be gone back to, besides the branches' newest.
        max_history: moments of a branch whose frames are kept, to be saved.
        """
        self.max_moments, self.max_branches, self.max_history = max_moments, max_branches, max_history
        self.cursor = start
        self.live = Branch(id=0, parent=None, path=[start])
        self.branches = [self.live]
        self._resumable = [start]  # in the order of their making
        self._next_branch = 1

    def append(self, moment: Moment) -> bool:
        """Go on from the cursor to a new moment; -> whether a branch began there."""
        branched = self.cursor is not self.live.tip
        if branched:
            self.live = Branch(id=self._next_branch, parent=self.live.id, path=self.path)
            self._next_branch += 1
            self.branches.append(self.live)
            if len(self.branches) > self.max_branches:
                del self.branches[0]  # the live one is the last
        self.live.path.append(moment)
        if len(self.live.path) > self.max_history:
            del self.live.path[0]
        self.cursor = moment
        self._resumable.append(moment)
        self._forget()
        return branched

    @property
    def path(self) -> list[Moment]:
        """The live branch's moments up to the cursor."""
        path = self.live.path
        return path[: _index(path, self.cursor) + 1]

    @property
    def resumable(self) -> list[int]:
        """The ids of the live branch's moments that can be gone back to, in order."""
        return [moment.id for moment in self.live.path[-2 * self.max_moments :] if moment.resume is not None]

    def go_to(self, moment: int) -> None:
        """Stand at a moment of the live branch; a ValueError if it can't be gone back to any more."""
        found = next((m for m in reversed(self.live.path) if m.id == moment and m.resume is not None), None)
        if found is None:
            raise ValueError(f"play: moment {moment} is too long ago, or of another branch; choose a later one.")
        self.cursor = found

    def go_to_branch(self, branch: int) -> None:
        """Stand at the newest moment of a branch; a ValueError if it isn't kept."""
        found = next((one for one in self.branches if one.id == branch), None)
        if found is None:
            raise ValueError(f"play: branch {branch} is not kept any more; choose another.")
        self.branches.remove(found)  # the one that was live last goes last
        self.branches.append(found)
        self.live, self.cursor = found, found.tip

    def _forget(self) -> None:
        """Let the oldest moments go, except the branches' newest and the cursor."""
        kept = {id(branch.tip) for branch in self.branches} | {id(self.cursor)}
        for moment in self._resumable[: max(0, len(self._resumable) - self.max_moments)]:
            if id(moment) not in kept:
                moment.resume = moment.real = None
        self._resumable = [moment for moment in self._resumable if moment.resume is not None]


def _index(path: list[Moment], moment: Moment) -> int:
    return next(i for i in reversed(range(len(path))) if path[i] is moment)
