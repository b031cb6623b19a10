"""What README.md shows is what happens."""

import re
import shlex
from pathlib import Path

import pytest
from conftest import Programs

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


SECTIONS = re.findall(r"^## (.*)$", README, re.M)


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.M | re.S)


def test_the_opening_program_prints_what_its_comment_says(program: Programs) -> None:
    source = blocks("python")[0]
    assert "# [6, 28, 496]" in source
    done = program(source)
    assert (done.out, done.status) == ("[6, 28, 496]\n", 0), done.err


def test_the_first_program_runs(program: Programs) -> None:
    source = "import mpgort\n" + blocks("python")[1]
    source += '\nif __name__ == "__main__":\n    mpgort.run(main)\n'
    done = program(source)
    assert (done.out, done.status) == ("0\n1\n2\n1024\n", 0), done.err


FROM = ("concurrent.futures", "multiprocessing", "joblib", "Dask", "asyncio")


@pytest.mark.parametrize("peer", FROM)
def test_who_comes_from_elsewhere_gets_what_the_comments_say(program: Programs, peer: str) -> None:
    if peer in ("joblib", "Dask"):
        pytest.importorskip(peer.lower())
    section = README.split(f"\n## From {peer}\n")[1].split("\n## ")[0]
    (source,) = re.findall(r"^```python\n(.*?)^```$", section, re.M | re.S)
    assert re.search("# (was:|this line)", source) and "hat differs" in section
    said = re.findall(r"^ +print\(.*\)  # (.*)$", source, re.M)
    assert said
    done = program(source)
    assert (done.out.splitlines(), done.err, done.status) == (said, "", 0)


def test_each_option_of_run_and_runtime_has_a_row() -> None:
    from mpgort._options import Given

    table = README.split("| option | default |")[1].split("\n\n")[0]
    rows = re.findall(r"^\| (`.*?) \|", table, re.M)
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == {
        *Given.__annotations__
    }


def test_the_table_of_contents_leads_to_sections() -> None:
    sections = {re.sub(r"[^\w -]", "", t).lower().replace(" ", "-") for t in SECTIONS}
    links = re.findall(r"\]\(#([^)]*)\)", README)
    assert links and set(links) <= sections


def test_the_two_commands_are_those_that_ci_runs() -> None:
    set_up, test = blocks("sh")[:2]
    ci = (ROOT / ".ci" / "run").read_text()
    assert f"TEST='{test.strip()}'" in ci
    install = next(part for part in set_up.split(" && ") if "pip install" in part)
    extras = shlex.split(install)[-1]
    assert f"pip install -q --disable-pip-version-check -e '{extras}'" in ci


@pytest.mark.parametrize(
    "path", sorted(set(re.findall(r"`((?:shm|mpgort|bench)/[\w./]+)`", README)))
)
def test_a_file_that_the_readme_names_is_there(path: str) -> None:
    assert (ROOT / path).exists()
