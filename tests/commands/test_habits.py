"""What users of llama.cpp type, the help, and the transcript of the quickstart."""

import re
import shlex
from importlib import import_module

import pytest

from gwq_export.cli import COMMANDS
from tests.support.cli import assert_one_line, call, command
from tests.support.paths import DATA, REFERENCE, ROOT

QUICKSTART = (ROOT / "docs" / "quickstart.md").read_text(encoding="utf-8")
QUICKSTART, _, _ = QUICKSTART.partition("## A model that people chat with")
HELP = "/clear forgets the conversation"


def parser_of(name):
    return import_module(f"gwq_export.commands.{COMMANDS[name]}").parser()


@pytest.fixture(scope="module")
def path(exported):
    return exported(REFERENCE, type="f32")[0]


@pytest.mark.parametrize("name", COMMANDS)
def test_the_model_may_follow_a_flag(name):
    """-m FILE before, after or in place of the first argument; both, or neither, is a mistake."""
    dest = "model" if name == "export" else "file"
    for words in (["x"], ["-m", "x"], ["--model", "x"], ["--json", "-m", "x"]):
        args = parser_of(name).parse_args(words)
        assert getattr(args, dest) == "x" and not hasattr(args, "_m")
    with pytest.raises(SystemExit) as e:
        parser_of(name).parse_args(["x", "-m", "y"])
    assert e.value.code == 2


@pytest.mark.parametrize("name", ["run", "eval", "info"])
def test_a_missing_model_is_one_line(capsys, name):
    status, _, err = call(capsys, name)
    assert_one_line(name, status, err, "FILE.gguf is missing: give it, or -m FILE.gguf")


@pytest.mark.parametrize(
    "name, short, long",
    [
        ("export", ["-o", "x", "-c", "64", "-t", "2"], ["--out", "x", "--ctx", "64"]),
        ("run", ["-c", "64", "-t", "2", "-s", "1"], ["--ctx", "64", "--seed", "1"]),
        ("eval", ["-c", "64", "-t", "2", "-f", "t"], ["--ctx", "64", "--text", "t"]),
        ("bench", ["-t", "2"], []),
    ],
)
def test_short_flags_mean_the_long_ones(name, short, long):
    parse = parser_of(name).parse_args
    assert parse(["m", *short]) == parse(["m", *long, "--threads", "2"])


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_grouped_and_ends_in_examples(capsys, name):
    """Every flag stands in a group of ours, and every example is a command that is understood."""
    status, out, _ = call(capsys, name, "--help")
    assert status == 0 and "\noptions:" not in out
    groups = [g for g in parser_of(name)._action_groups if g._group_actions]
    assert all(len(g._group_actions) <= 12 for g in groups) and len(groups) >= 3
    examples = out.partition("\nexamples:\n")[2].splitlines()
    assert len(examples) >= 3
    for line in examples:
        program, *words = shlex.split(line, comments=True)
        assert program == f"gwq-{name}" and parser_of(name).parse_args(words)
        assert len(line) <= 100


def test_raw_is_not_called_a_missing_template(path, capsys, monkeypatch, caplog):
    """Of a file that has a template, and of one that has none."""
    done = command("run", path, "-i", "--raw", "-n", 1, "-t", 1, input="")
    assert "--raw: every line continues" in done.stderr and "no chat template" not in done.stderr
    done = command("run", path, "-i", "-n", 1, "-t", 1, input="")
    assert "continues the text" not in done.stderr


def test_a_file_without_a_template(tiny, exported, tmp_path):
    import json
    import shutil

    folder = tmp_path / "m"
    shutil.copytree(tiny("llama"), folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    done = command("run", exported(folder, type="f16")[0], "-i", "-n", 1, "-t", 1, input="")
    assert "the file has no chat template: every line continues" in done.stderr


def test_a_context_larger_than_memory(path, capsys, monkeypatch, caplog):
    """A chat begins all the same, and says which of gwq-run's flags help."""
    from gwq_export.commands import run
    from gwq_export.runtime import kv_cache

    monkeypatch.setattr("sys.stdin", open("/dev/null"))  # noqa: SIM115
    monkeypatch.setattr(run, "free_memory", lambda: 1 << 20)
    status, _, err = call(capsys, "run", path, "-i", "-t", 1)
    assert status == 0, err
    assert "the KV cache of a full context (2048 tokens) takes 8.00 MiB" in caplog.text
    assert "smaller --ctx, or --cache-type q8_0" in caplog.text and "--samples" not in caplog.text
    monkeypatch.setattr(kv_cache, "free_memory", lambda: 1000)
    status, _, err = call(capsys, "run", path, "-p", "The city", "-t", 1)
    assert_one_line("run", status, err, "positions takes 0.")
    assert "--cache-type q8_0" in err and "--samples" not in err


def masked(text):
    """Without numbers and guessed tokens, which depend on the machine."""
    return re.sub(r"\d[\d.]*", "0", re.sub(r", \d+ of \d+ guessed tokens right", "", text))


def blocks():
    """[(command line, what it printed)] of the quickstart's transcripts of our commands."""
    for block in re.findall(r"^```\n(.*?)^```", QUICKSTART, re.MULTILINE | re.DOTALL):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            line, _, printed = part.partition("\n")
            if line.startswith("gwq-"):
                yield line, printed


def test_the_transcript_of_the_quickstart(tmp_path):
    """Its commands print such lines; generated words and figures may be others."""
    shown = list(blocks())
    assert [line.split()[0] for line, _ in shown] == [
        "gwq-export",
        "gwq-run",
        "gwq-run",
        "gwq-eval",
    ]
    text = tmp_path / "eval.txt"
    text.write_text((DATA / "eval.txt").read_text()[:1500])
    places = {
        "gwq-export/tests/data/gwq-reference": REFERENCE,
        "city.gguf": tmp_path / "city.gguf",
        "gwq-export/tests/data/eval.txt": text,
    }
    for line, printed in shown:
        program, *words = shlex.split(line, comments=True)
        typed = re.findall(r"^> (.*)$", printed, re.MULTILINE)
        words = [*(str(places.get(word, word)) for word in words), "-t", "1"]
        if typed:
            words.append("-i")
        if program == "gwq-export":
            words += ["--samples", "1", "--ctx", "64"]  # quickly
        done = command(program.removeprefix("gwq-"), *words, input="".join(f"{t}\n" for t in typed))
        assert done.returncode == 0, done.stderr
        found = masked(done.stdout + done.stderr.replace(str(tmp_path) + "/", ""))
        wanted = masked(printed).splitlines()
        if typed:
            wanted = [w for w in wanted if w.startswith(HELP)]
            assert wanted and typed[-1] == "/exit"
            assert "continues the text" not in found  # "The file has a chat template"
        elif program in ("gwq-run", "gwq-export"):
            wanted = wanted[-1:]  # before it come the model's words, or the types that were chosen
        for w in wanted:
            assert w in found, (w, found)
