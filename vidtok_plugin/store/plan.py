"""The plan of a split: which episodes go into which shard. The split's only writer makes it before shards are written.

Each version of the plan is a folder, so that it appears whole; a plan to which episodes were added is the next version.
"""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from vidtok_plugin.common.atomic_files import atomic_create
from vidtok_plugin.common.json_files import read_json
from vidtok_plugin.store.shards import open_shard, shard_paths

PLAN = "plan_{:05d}"
SHARDS_FILE = "shards.json"
MAX_BYTES = 1 << 30

Plan = list[list[str]]  # the names of the episodes of shard 0, 1, ...


def plan_shards(split_folder: Path, names: Sequence[str], episodes_per_shard: int) -> Plan:
    """A plan that includes all of `names`: the current one, or the current one with new shards appended.

    Planned episodes that are neither in `names` nor written are gone. The caller holds the split's lock.
    """
    written = stored_names(split_folder, damaged=(ValueError, FileNotFoundError))
    version, planned = read_plan(split_folder)
    plan = _extend(planned, written, names, episodes_per_shard)
    if plan != planned:
        atomic_create(split_folder / PLAN.format(version + 1), partial(_write, plan))
    return plan


def _extend(planned: Plan, written: Mapping[int, list[str]], names: Sequence[str], episodes_per_shard: int) -> Plan:
    """Keep written shards as they are, and planned ones without episodes that are gone; append the new episodes.

    A planned shard with none of `names` stays whole: it belongs to a run over another folder.
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
    included = {name for shard in plan for name in shard}
    new = [name for name in names if name not in included]
    return plan + [new[start : start + episodes_per_shard] for start in range(0, len(new), episodes_per_shard)]


def stored_names(split_folder: Path, damaged: tuple[type[Exception], ...] = (ValueError,)) -> dict[int, list[str]]:
    """The names of the episodes of each written shard, by its number; those of a damaged one as planned.

    damaged: errors of opening a shard for which the plan is asked.

    Raises:
        ValueError: a shard is damaged and the plan does not have it.
        FileNotFoundError: a shard has been removed meanwhile.
    """
    names: dict[int, list[str]] = {}
    for number, path in shard_paths(split_folder).items():
        try:
            episodes = open_shard(path).stored_episodes()
        except damaged:
            _, planned = read_plan(split_folder)
            if number >= len(planned):
                raise
            names[number] = planned[number]
        else:
            names[number] = list(dict.fromkeys(episode.name for episode in episodes))  # clips share a name
    return names


def read_plan(split_folder: Path) -> tuple[int, Plan]:
    """Version and content of the newest plan; -1 and an empty plan if there is none.

    Raises:
        ValueError: it is damaged.
    """
    version = -1
    while (split_folder / PLAN.format(version + 1)).exists():
        version += 1
    if version < 0:
        return version, []
    file = split_folder / PLAN.format(version) / SHARDS_FILE
    remedy = f"remove {file.parent} and tokenize again, which plans anew around the shards that exist"
    plan = read_json(file, remedy, max_bytes=MAX_BYTES)
    if not isinstance(plan, list) or not all(
        isinstance(shard, list) and all(isinstance(name, str) for name in shard) for shard in plan
    ):
        raise ValueError(f"{file} must be a JSON list of the lists of each shard's episodes; {remedy}.")
    return version, plan


def _write(plan: Plan, folder: Path) -> None:
    folder.mkdir()
    (folder / SHARDS_FILE).write_text(json.dumps(plan, indent=1) + "\n", encoding="utf-8")
