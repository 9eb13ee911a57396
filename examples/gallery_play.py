"""Policies that play the worlds of the gallery: PushT's pusher, and CarRacing's driver.

    vidtok-plugin examples gallery_play --copy .
    world-model record --config ... --policy gallery_play:push

Uniformly random actions leave the pusher beside its block and the car where it stands. These policies have aims that
change at random, and noise, so that all actions occur and most of them matter.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

Policy = Callable[[Any], np.ndarray]

FIELD = (30.0, 482.0)  # PushT's coordinates that the pusher may be sent to; its field is 512 wide
PUSHES = 0.75  # probability that the pusher's next way goes through the block
PUSH_SPEEDS = (3.0, 11.0)  # by which the target moves in a frame

CAR_SPEEDS = (12.0, 42.0)  # of the car, in the units of its world per second
ROAD_HALF = 5.0  # the driver aims at most this far from the middle of the road; the road is 13 wide
MOODS = {"follow": 0.65, "swerve": 0.35}  # and their probabilities
MOOD_FRAMES = {"follow": (40, 120), "swerve": (8, 25)}  # a mood's smallest and largest duration


def push(env: Any, hold: tuple[int, int], rng: np.random.Generator) -> Policy:
    """Moves PushT's target along straight ways: through the block, towards a random place for it, or anywhere."""
    target: np.ndarray | None = None
    ways: list[np.ndarray] = []
    speed = 0.0

    def policy(observation: Any) -> np.ndarray:
        nonlocal target, ways, speed
        if target is None:
            target = np.array(env.unwrapped.agent.position)
        if not ways:
            speed = rng.uniform(*PUSH_SPEEDS)
            if rng.random() < PUSHES:
                ways = ways_through(np.array(env.unwrapped.block.position), target, rng)
            else:
                ways = [rng.uniform(*FIELD, 2)]
        ways[0] = ways[0].clip(*FIELD)
        left = ways[0] - target
        distance = float(np.linalg.norm(left))
        target = ways.pop(0) if distance <= speed else target + left * (speed / distance)
        return (target + rng.normal(0, 1, 2)).clip(0, 512).astype(np.float32)

    return policy


def ways_through(block: np.ndarray, target: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """Where to go one after the other: around the block, behind it, and through it to where it is to be."""
    aim = rng.uniform(130, 380, 2)  # away from the walls, where the block would get stuck
    direction = (aim - block) / max(1.0, float(np.linalg.norm(aim - block)))
    behind = block - 90 * direction + rng.normal(0, 15, 2)
    if (target - block) @ direction < 0:
        return [behind, aim]
    side = np.array([-direction[1], direction[0]])
    return [block + math.copysign(110, float((target - block) @ side)) * side, behind, aim]


def drive(env: Any, hold: tuple[int, int], rng: np.random.Generator) -> Policy:
    """Follows CarRacing's road at changing speeds and distances from its middle, and at times swerves at random."""
    mood, left, speed, offset, steering, noise = "", 0, 0.0, 0.0, 0.0, 0.0

    def policy(observation: Any) -> np.ndarray:
        nonlocal mood, left, speed, offset, steering, noise
        if left == 0:
            mood = str(rng.choice(list(MOODS), p=list(MOODS.values())))
            left = int(rng.integers(*MOOD_FRAMES[mood], endpoint=True))
            speed, offset, steering = rng.uniform(*CAR_SPEEDS), rng.uniform(-ROAD_HALF, ROAD_HALF), rng.uniform(-1, 1)
        left -= 1
        noise = 0.8 * noise + rng.normal(0, 0.1)
        hull = env.unwrapped.car.hull
        velocity = math.hypot(*hull.linearVelocity)
        steer = steering if mood == "swerve" else 2.0 * angle_to_road(env.unwrapped.track, hull, offset, velocity)
        gas, brake = 0.08 * (speed - velocity), 0.04 * (velocity - speed - 4)
        return np.array([steer + noise, gas, brake]).clip([-1, 0, 0], 1).astype(np.float32)

    return policy


def angle_to_road(track: Any, hull: Any, offset: float, velocity: float) -> float:
    """The angle to the right, in radians, from where the car heads to a point of the road ahead of it."""
    places = np.array([(x, y) for _, _, x, y in track])
    position = np.array(hull.position)
    nearest = int(np.linalg.norm(places - position, axis=1).argmin())
    ahead = (nearest + 2 + int(velocity / 12)) % len(places)
    along = track[ahead][1]  # the road's heading; (cos, sin) of it points to the right
    way = places[ahead] + offset * np.array([math.cos(along), math.sin(along)]) - position
    right = np.array([math.cos(hull.angle), math.sin(hull.angle)])
    forward = np.array([-math.sin(hull.angle), math.cos(hull.angle)])
    return math.atan2(float(way @ right), float(way @ forward))
