"""The site: what is public is on it, and it builds."""

import importlib
import pathlib
import re
import subprocess
import sys

import pytest

import keras_mikd as mikd

ROOT = pathlib.Path(__file__).parents[1]
DOCS = ROOT / "docs"


@pytest.fixture
def public_names(monkeypatch):
    monkeypatch.syspath_prepend(DOCS / "_extensions")
    return importlib.import_module("public_names")


def test_names_are_those_that_a_user_writes(public_names):
    names = public_names.public_names()
    assert names["Distiller"] is mikd.Distiller
    assert names["recipes.vid"] is mikd.recipes.vid
    assert names["bounds.jsd"] is mikd.bounds.jsd
    assert not {"keras_internals", "checks", "checks.number"} & set(names)


def test_every_public_name_and_argument_has_a_text(public_names):
    assert public_names.undocumented() == []


def test_an_argument_without_a_text_is_found(public_names, monkeypatch):
    def stages(model, depth):
        """Finds places.

        Args:
            model: A network.
        """

    monkeypatch.setattr(mikd, "stages", stages)
    assert public_names.undocumented() == ["stages(depth)"]


def test_a_table_of_options_has_arguments_defaults_and_texts(public_names):
    ((name, default, text),) = public_names.options(mikd.AttentionTransfer)
    assert (name, default) == ("power", 2.0)
    assert text and text in " ".join(mikd.AttentionTransfer.__doc__.split())


def test_the_first_page_links_every_tutorial_and_every_how_to():
    page = (DOCS / "index.md").read_text()
    written = {
        f"{d}/{each.name}" for d in ("tutorials", "howto") for each in (DOCS / d).glob("*.md")
    }
    linked = set(re.findall(r"\]\(([\w/]+\.md)\)", page))
    assert written <= linked, sorted(written - linked)
    in_menu = set(re.findall(r"^((?:tutorials|howto)/\w+)$", page, re.MULTILINE))
    assert {name.removesuffix(".md") for name in written} == in_menu


def test_every_loss_has_its_options_on_a_page_of_methods():
    pages = "".join(page.read_text() for page in (DOCS / "methods").glob("*.md"))
    tables = set(re.findall(r"^```\{options\} (\w+)$", pages, re.MULTILINE))
    losses = {
        name
        for name, value in vars(mikd).items()
        if isinstance(value, type) and issubclass(value, mikd.DistillationLoss)
    }
    # NST has no options of its own.
    assert losses - tables == {"DistillationLoss", "NST"}


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "sphinx", "-W", "-n", "--keep-going", "-b", "html"]
    run = subprocess.run(
        [*command, "-d", tmp_path / "trees", DOCS, tmp_path / "site"],
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "site" / "api" / "recipes.vid.html").exists()
