"""What pages name is there: commands with their options, variables, links."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import typer

from postroom.cli.main import app
from postroom.webhooks.schemes import SCHEMES
from tests.docs.test_samples import EVERY_PAGE, NOT_FOLLOWED, ROOT, name_of

_COMMAND = re.compile(
    r"(?<!`)`(?:manage\.py )?postroom ([^`]+)`(?!`)|^\$ (?:\w+=\S+ )*postroom (.+)$", re.MULTILINE
)


def test_each_page_that_is_not_followed_is_there() -> None:
    """One that was taken out leaves no reason behind."""
    assert {name for name in NOT_FOLLOWED if not (ROOT / name).exists()} == set()


@pytest.mark.parametrize("page", EVERY_PAGE, ids=name_of)
def test_each_command_that_a_page_names_is_there(page: Path) -> None:
    """Also those within a sentence, with the options that they are named with."""
    for words in _COMMAND.findall(page.read_text()):
        text = re.sub(r"\s# .*$", "", "".join(words))
        command, rest = _resolved(text.split())
        options = {
            one for parameter in command.params for one in (*parameter.opts, *parameter.secondary_opts)
        }
        named = {word.strip("[]").partition("=")[0] for word in rest if re.match(r"\[?--\w", word)}
        assert named <= options | {"--help"}, f"postroom {text}"


def _resolved(words: list[str]) -> tuple[Any, list[str]]:
    """The command of a line, and what is left for it."""
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands") and words and re.fullmatch(r"[a-z-]*[a-z]", words[0]):
        assert words[0] in command.commands, f"{command.name} has no {words[0]}"
        command, words = command.commands[words[0]], words[1:]
    return command, words


def test_each_link_of_a_page_outside_the_site_leads_somewhere() -> None:
    """`make docs` looks at those of docs/."""
    for page in (*ROOT.glob("*.md"), *(ROOT / "examples").glob("*/*.md")):
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / link).exists(), f"{name_of(page)}: {link}"


def test_pages_say_how_many_schemes_there_are() -> None:
    """As the code has them; the page on webhooks names each."""
    for page, words in (("README.md", "schemes"), ("docs/tutorial.md", "kinds of providers")):
        assert f" {len(SCHEMES)} {words}" in (ROOT / page).read_text()


def test_each_variable_that_a_page_names_is_a_setting() -> None:
    """As the reference has them, which is made from the code."""
    known = set(re.findall(r"\bPOSTROOM_[A-Z_]+", (ROOT / "docs/reference/settings.md").read_text()))
    for page in EVERY_PAGE:
        if "decisions" not in page.parts and page.name != "performance.md":
            assert set(re.findall(r"\bPOSTROOM_[A-Z_]+", page.read_text())) <= known, page
