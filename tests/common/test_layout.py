"""The layout of the repository keeps imports what they should be."""

import pytest
from places import TESTS


@pytest.mark.parametrize("package", ["vidtok_plugin", "world_model"])
def test_no_folder_of_the_tests_shadows_a_package(package: str) -> None:
    """tests/world_model was found as a namespace package, before the installed one, by scripts in tests/."""
    assert not (TESTS / package).exists()
