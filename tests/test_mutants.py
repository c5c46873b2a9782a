"""The table of mutants: each change is possible, and its test exists."""

from __future__ import annotations

import re

import pytest

from tests.mutants import MUTANTS, ROOT


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_can_be_made_and_its_test_exists(name: str) -> None:
    mutant = MUTANTS[name]
    assert (ROOT / mutant.file).read_text().count(mutant.old) == 1
    assert mutant.old != mutant.new
    file, _, function = mutant.test.partition("::")
    found = (ROOT / file).read_text()
    assert re.search(rf"^(async )?def {function.partition('[')[0]}\(", found, re.MULTILINE)
