"""gwq-bench --compare: ratios of results, and what is refused."""

import copy
import json

import pytest

from gwq_export import GwqError
from gwq_export.bench import compare, document, schema, suite
from tests.support.cli import assert_one_line, call

try:
    import jsonschema
except ImportError:
    jsonschema = None


# llama-bench's fields that a row has beside those that the schema wants
EXTRA = {"build_number", "n_batch", "n_ubatch", "type_k", "type_v", "n_gpu_layers", "test_time"}
EXTRA |= {"avg_ns", "stddev_ns"}


@pytest.fixture(scope="module")
def found(exported):
    """A document of the bundled model."""
    quick = {"STARTS": 2, "SWEEP": 2, "PROMPTS": (4,), "GEN": 3, "DEPTHS": (8,), "REPEATS": 2}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (quick | {"MINUTES": 0.02}).items():
            patch.setattr(suite, name, value)
        quiet = lambda *step: None  # noqa: E731
        path = exported(type="gwq4")[0]
        return suite.run_suite("edge", path, (), "cpu", [1], None, quiet, quiet, quiet)


def slower(found, times):
    """The same device, everything so many times as slow, with half of the memory."""
    other = copy.deepcopy(found)
    for r in other["rows"]:
        r["samples_ts"] = [ts / times for ts in r["samples_ts"]]
        r["peak_bytes"] //= 2
    for s in other["starts"]:
        s["start_ns"] = s["start_ns"] and s["start_ns"] * times
    for p in other["sustained"]["points"]:
        p["tps"] /= times
    return other


def test_ratios(found, tmp_path, capsys):
    a, b = tmp_path / "fast.json", tmp_path / "slow.json"
    a.write_text(json.dumps(found))
    b.write_text(json.dumps(slower(found, 2)))
    status, out, err = call(capsys, "bench", "--compare", a, b, "--json")
    assert status == 0, err
    rows = json.loads(out.splitlines()[-1])["rows"]
    named = {r["what"]: r for r in rows}
    assert set(named) >= {"pp4", "tg3", "tg2 @ d8", "peak memory", "start to first token, warm"}
    for what, r in named.items():
        wanted = 2 if r["unit"] == "ms" else 0.5
        assert r["less_is_better"] == (r["unit"] in ("ms", "MiB"))
        if r["q1"] is None:
            assert r["runs"] == [1, 1] and r["ratio"] == pytest.approx(wanted, rel=1e-3), what
        else:
            assert r["q1"] <= r["ratio"] <= r["q3"]
    assert named["peak memory"]["q1"] is None
    assert "first: fast, model.gguf (llama gwq4), gwq" in out and "| second / first |" in out
    assert "one run each" in out


def test_spread():
    middle, low, high = compare.ratio([1.0, 2.0], [2.0, 4.0])
    assert (middle, low, high) == (2.0, 1.75, 2.5)  # of 1, 2, 2, 4


def test_the_same_result_is_one_to_one(found):
    rows = compare.compare([("a", found), ("b", found)])
    assert all(r["q1"] is None or r["q1"] <= 1 <= r["q3"] for r in rows)
    assert all(r["ratio"] == pytest.approx(1, rel=0.2) for r in rows if r["q1"] is None)


def test_engines_of_one_result(found):
    """llama.cpp beside ours, as --against measures it."""
    both = copy.deepcopy(found)
    for r in slower(found, 4)["rows"]:
        if r["step"] == "speed":
            both["rows"].append(r | {"backends": "llama.cpp", "model_filename": "q4.gguf"})
    rows = compare.compare([("a", both)])
    assert {(r["first_engine"], r["second_engine"]) for r in rows} == {("gwq", "llama.cpp")}
    assert {r["what"] for r in rows} == {"pp4", "tg3", "peak memory"}
    with pytest.raises(GwqError, match="no test in common"):
        compare.compare([("a", found)])


def test_who_is_compared_with_whom():
    a, b, c, d = ("x", "gwq"), ("x", "llama.cpp"), ("y", "gwq"), ("z", "gwq")
    pairs = lambda one, two: compare.pairs(dict.fromkeys(one), dict.fromkeys(two))  # noqa: E731
    assert pairs([a, b], [b, a]) == [(a, a), (b, b)]
    assert pairs([a], [b]) == [(a, b)]  # the same file on another engine
    assert pairs([c], [d]) == [(c, d)]  # one each
    assert pairs([a, c], [a, d]) == [(a, a), (c, d)]
    assert pairs([c, a], [d, b]) == [(a, b), (c, d)]
    assert pairs([c, a], [d]) == []


def test_three_results(found):
    rows = compare.compare([("a", found), ("b", found), ("c", slower(found, 3))])
    assert {(r["first_result"], r["second_result"]) for r in rows} == {("a", "b"), ("a", "c")}


def test_results_with_energy(found):
    """One figure each."""
    metered = copy.deepcopy(found)
    for r in metered["rows"]:
        r["joules_per_token"] = 0.5
    rows = compare.compare([("a", metered), ("b", metered)])
    energy = [r for r in rows if r["unit"] == "J/token"]
    assert len(energy) == 2 and all(r["ratio"] == 1 and r["less_is_better"] for r in energy)


@pytest.mark.parametrize(
    "text, words",
    [
        ("not JSON", "no result of gwq-bench --suite edge"),
        ("[]", "no result of"),
        ('{"schema": "other"}', "no result of"),
        ('{"schema": "gwq-bench/edge", "version": 2}', "version 2"),
        ('{"schema": "gwq-bench/edge", "version": 1}', "damaged (created is missing)"),
        (None, "cannot be read"),
    ],
)
def test_files_that_are_no_results(tmp_path, capsys, text, words):
    path = tmp_path / "r.json"
    if text is not None:
        path.write_text(text)
    status, _, err = call(capsys, "bench", "--compare", path)
    assert_one_line("bench", status, err, words)


def test_documents_follow_the_schema(found, tmp_path):
    assert schema.mistake(found) is None
    (tmp_path / "r.json").write_text(json.dumps(found))
    assert document.read(tmp_path / "r.json") == found
    # whatever is taken away or of another kind is seen
    for path in places(found):
        if path[-1] in EXTRA:
            continue
        for change in (lambda parent, key: parent.pop(key), spoil):
            broken = copy.deepcopy(found)
            parent = broken
            for key in path[:-1]:
                parent = parent[key]
            change(parent, path[-1])
            if isinstance(parent, list) and not isinstance(path[-1], str):
                continue
            assert schema.mistake(broken) is not None, path


def spoil(parent, key):
    parent[key] = {"a": object} if not isinstance(parent[key], dict) else 1


def places(value, path=()):
    """Paths of the properties that a document must have, one item of each list."""
    if isinstance(value, dict):
        for key, item in value.items():
            if path[-1:] == ("cores",):
                continue
            yield (*path, key)
            yield from places(item, (*path, key))
    elif isinstance(value, list) and value:
        yield from places(value[0], (*path, 0))


@pytest.mark.skipif(jsonschema is None, reason="pip install jsonschema")
def test_another_validator_agrees(found):
    jsonschema.Draft202012Validator.check_schema(schema.schema())
    jsonschema.validate(found, schema.schema())


def test_the_check():
    rule = {"type": "object", "required": ["a"], "properties": {"a": {"type": "integer"}}}
    assert schema.mistake({"a": 1, "b": 2}, rule) is None
    assert schema.mistake({}, rule) == "a is missing"
    assert schema.mistake({"a": True}, rule) == "a is no integer"
    assert schema.mistake([1], rule) == "the document is no object"
    strict = rule | {"additionalProperties": False}
    assert schema.mistake({"a": 1, "b": 2}, strict) == "b is not known"
    counts = {"additionalProperties": {"type": ["integer", "null"], "minimum": 1}}
    assert schema.mistake({"x": None, "y": 0}, counts) == "y is below 1"
    assert schema.mistake([1, "x"], {"items": {"type": "number"}}) == "[1] is no number"
    assert schema.mistake("x", {"enum": ["a", "b"]}) == "the document is none of a, b"
