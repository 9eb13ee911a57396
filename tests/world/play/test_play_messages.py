"""Messages of the page are checked, and moments survive the way to it."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from play_clients import tiny_scenes

from world_model.play.messages import pack_moment, parse_command, unpack_moment
from world_model.play.scenes import ActionSpace
from world_model.play.session import PlaySession

BUTTONS = ActionSpace(kind="discrete", size=3, meanings=["noop", "left", "right"])
STICK = ActionSpace(kind="continuous", size=2, meanings=["x", "y"], low=[-1, 0.5], high=[1, 2])


def test_commands_are_read() -> None:
    assert parse_command('{"type": "hold", "id": 4, "action": 2}', BUTTONS).action == 2
    assert parse_command('{"type": "hold", "id": 4, "action": [0, 1.5]}', STICK).action == (0.0, 1.5)
    assert parse_command('{"type": "rewind", "moment": 7}', BUTTONS).number == 7
    assert parse_command('{"type": "reset"}', BUTTONS).number == -1
    assert parse_command('{"type": "sampler", "temperature": 0.5, "guidance": 2}', BUTTONS).guidance == 2.0
    assert BUTTONS.rest == 0 and STICK.rest == (0.0, 0.5)
    assert ActionSpace(kind="discrete", size=2, meanings=["fire", "NOOP"]).rest == 1


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        (b"\x00\x01", "must be text"),
        ("{", "must be JSON"),
        ("[" * 3000, "must be JSON"),
        ("[]", "must be an object"),
        ('{"type": "format"}', "no message of type 'format'"),
        ('{"type": ["run"]}', "no message of type"),
        ('{"type": "hold", "id": 1, "action": 3}', r"an integer in 0\.\.2, got '3'"),
        ('{"type": "hold", "id": 1, "action": -1}', "an integer in"),
        ('{"type": "hold", "id": 1, "action": true}', "an integer in"),
        ('{"type": "hold", "id": 1, "action": 1.0}', "an integer in"),
        ('{"type": "hold", "id": 1, "action": [1]}', "an integer in"),
        ('{"type": "hold", "id": -1, "action": 1}', "id must be a whole number"),
        ('{"type": "hold", "action": 1}', "id must be a whole number"),
        ('{"type": "rewind", "moment": "7"}', "moment must be a whole number"),
        ('{"type": "seen", "moment": 1e300}', "moment must be a whole number"),
        ('{"type": "reset", "prompt": null}', "prompt must be a whole number"),
        ('{"type": "sampler", "temperature": NaN, "guidance": 1}', r"temperature must be a number in 0\.\.2"),
        ('{"type": "sampler", "temperature": 1, "guidance": 1e9}', r"guidance must be a number in 0\.\.5"),
        ('{"type": "sampler", "temperature": 1}', "guidance must be a number"),
        ('{"type": "entropy", "on": 1}', "on must be true or false"),
    ],
)
def test_other_messages_are_refused(message: str | bytes, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        parse_command(message, BUTTONS)


@pytest.mark.parametrize("action", ["[0]", "[0, 1, 1]", "[0, 3]", "[0, NaN]", '["0", 1]', "[true, 1]", "1", "null"])
def test_continuous_actions_of_another_shape_or_range_are_refused(action: str) -> None:
    with pytest.raises(ValueError, match="2 numbers within the action space's bounds"):
        parse_command(f'{{"type": "hold", "id": 1, "action": {action}}}', STICK)


def test_a_moment_survives_the_way_to_the_page(tmp_path: Path) -> None:
    session = PlaySession(tiny_scenes(tmp_path))
    session.measures_entropy = True
    moment = session.advance()
    header, strips = unpack_moment(pack_moment(session, moment, jump=False, seconds=0.25))
    assert header["moment"] == moment.id == 1 and header["moments"] == [0, 1] and header["milliseconds"] == 250
    assert moment.entropy is not None
    np.testing.assert_allclose(header["entropy"], moment.entropy.flatten(), atol=1e-3)
    assert max(header["entropy"]) <= math.log(12) + 1e-3
    assert len(strips) == 1 and strips[0].shape == (64, 16, 3)
    assert np.abs(strips[0].astype(int) - moment.frames.reshape(64, 16, 3)).mean() < 8  # of noise, which JPEG blurs
    assert json.loads(json.dumps(header)) == header and header["reward"] is None and not header["over"]
