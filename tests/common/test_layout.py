"""The layout of the repository keeps imports what they should be."""

import re
import tomllib

import pytest
from places import ROOT, TESTS


@pytest.mark.parametrize("package", ["vidtok_plugin", "world_model"])
def test_no_folder_of_the_tests_shadows_a_package(package: str) -> None:
    """tests/world_model was found as a namespace package, before the installed one, by scripts in tests/."""
    assert not (TESTS / package).exists()


def test_the_lowest_constraints_are_the_floors_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = [*project["dependencies"], *project["optional-dependencies"]["train"]]
    floors = {re.sub(">=", "==", requirement) for requirement in needed if not requirement.startswith("torch>=")}
    lines = (ROOT / "constraints-lowest.txt").read_text().splitlines()
    assert {line for line in lines if not line.startswith("#")} == floors
