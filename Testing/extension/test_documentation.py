"""The README speaks of what is there: messages, pictures, commands and names of the program."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULE = ROOT / "MissingModalitySynth"
README = (ROOT / "README.md").read_text(encoding="utf-8")


def texts() -> list[str]:
    """All texts in the code, with "…" for what is filled in."""
    found = []
    for path in MODULE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(re.sub(r"\{\w+\}", "…", node.value))
    return [text.replace(" %", "%") for text in found]


def messages() -> list[str]:
    table = README.partition("### Troubleshooting")[2].partition("\n#")[0]
    rows = [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("|")]
    return rows[2:]


def test_the_readme_explains_messages():
    assert len(messages()) > 20


def test_every_message_that_the_readme_explains_is_one_of_the_program():
    known = texts()
    assert [each for each in messages() if not any(each in text for text in known)] == []


def test_every_picture_of_the_readme_exists():
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README)
    assert [each for each in pictures if not (ROOT / each).is_file()] == []


def test_every_package_that_is_installed_is_among_those_that_the_readme_says_how_to_remove():
    lines = (MODULE / "Resources" / "requirements.txt").read_text(encoding="utf-8").splitlines()
    required = {re.split("[>=<]", line)[0] for line in lines if line and not line.startswith("#")}
    assert set(re.search(r'pip_uninstall\("([^"]+)"\)', README)[1].split()) == required


@pytest.mark.parametrize("name", ["Synthesize", "Inputs", "Contrasts to synthesize", "Fade", "Flicker", "Outlines"])
def test_the_words_of_the_tutorial_are_those_on_the_panel(name):
    panel = (MODULE / "Resources" / "UI" / "MissingModalitySynth.ui").read_text(encoding="utf-8")
    assert name in README
    assert re.search(rf"<string>{name}:?</string>", panel.replace("&amp;", ""))
