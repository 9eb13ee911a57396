"""Which episodes go into which shard of a store, agreed on by all processes before they write.

    STORE/tokens_0a.../train/
        plan_00000/shards.json   the names of each shard's episodes: [["a.mp4", "b.mp4"], ["c.mp4"]]
        plan_00001/shards.json   the plan that took its place, since more episodes had come

A plan is a folder, since of two processes only one can give a folder its name: so they agree on one plan even if
they see different episodes, such as those of a folder that is still being filled.
"""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from vidtok_plugin.common.atomic_files import atomic_create
from vidtok_plugin.store.shards import open_shard, shard_paths

PLAN = "plan_{:05d}"
SHARDS_FILE = "shards.json"

Plan = list[list[str]]  # the names of the episodes of shard 0, 1, ...


def plan_shards(split_folder: Path, names: Sequence[str], episodes_per_shard: int) -> Plan:
    """The plan that holds all of `names`: the one that is there, or else that one with new shards at its end."""
    while True:
        # Before the plan is read: else a shard might be taken for one that was never planned.
        written = {number: _names(path) for number, path in shard_paths(split_folder).items()}
        version, planned = _latest(split_folder)
        plan = _extend(planned, written, names, episodes_per_shard)
        if plan == planned or atomic_create(split_folder / PLAN.format(version + 1), partial(_write, plan)):
            return plan


def _extend(planned: Plan, written: Mapping[int, list[str]], names: Sequence[str], episodes_per_shard: int) -> Plan:
    """What is written stays as it is, and what isn't stays as planned, less the episodes that have gone.

    A planned shard none of whose episodes is in `names` is left alone: it is another folder's.
    """
    given = set(names)
    stored = {name for shard in written.values() for name in shard}
    plan: Plan = []
    for number in range(max(len(planned), 1 + max(written, default=-1))):
        if number in written:
            plan.append(written[number])
            continue
        shard = [name for name in planned[number] if name not in stored] if number < len(planned) else []
        plan.append([name for name in shard if name in given] or shard)
    there = {name for shard in plan for name in shard}
    new = [name for name in names if name not in there]
    return plan + [new[start : start + episodes_per_shard] for start in range(0, len(new), episodes_per_shard)]


def _names(shard: Path) -> list[str]:
    return list(dict.fromkeys(episode.name for episode in open_shard(shard).stored_episodes()))  # clips share one


def _latest(split_folder: Path) -> tuple[int, Plan]:
    """Number and contents of the last plan; -1 and an empty one if there is none."""
    version = -1
    while (split_folder / PLAN.format(version + 1)).exists():
        version += 1
    if version < 0:
        return version, []
    return version, json.loads((split_folder / PLAN.format(version) / SHARDS_FILE).read_text())


def _write(plan: Plan, folder: Path) -> None:
    folder.mkdir()
    (folder / SHARDS_FILE).write_text(json.dumps(plan, indent=1) + "\n")
