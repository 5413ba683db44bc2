"""Chat templates from strangers: what they may spend, and that usual ones notice nothing of it."""

import time
from pathlib import Path

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from gwq_export import GwqError
from gwq_export.errors import NoMemory
from gwq_export.tokenizer.budget import Exceeded, weight
from gwq_export.tokenizer.chat_template import render
from tests.support.paths import SHARED

USER = [{"role": "user", "content": "a<b"}]
TALK = [
    {"role": "system", "content": "Be kind."},
    *(
        {"role": role, "content": f"{role} says <think>why</think> {i}\n"}
        for i in range(40)
        for role in ("user", "assistant")
    ),
]
# what templates of models do: macros, namespaces, tests, slices, filters with and without arguments
USUAL = """
{%- macro quoted(value, marks=['"', '"']) -%}
  {%- if value is mapping -%}{ {%- for k, v in value|dictsort -%}
    {{ k|tojson }}: {{ quoted(v) }}{{ ', ' if not loop.last }}
  {%- endfor -%} }
  {%- elif value is string -%}{{ marks[0] ~ value|replace('\\n', ' ')|trim ~ marks[1] }}
  {%- else -%}{{ value }}{%- endif -%}
{%- endmacro -%}
{%- set ns = namespace(first=true, seen=[], text='') -%}
{%- if messages[0]['role'] in ['system', 'developer'] -%}
  {%- set rest = messages[1:] -%}{{ bos_token + '[' + messages[0].content + ']' }}
{%- else -%}{%- set rest = messages -%}{%- endif -%}
{%- for m in rest if m.role != 'tool' -%}
  {%- if not m.content is string %}{{ raise_exception('text only') }}{% endif -%}
  {%- set content = m.content.split('</think>')[-1].lstrip() if '</think>' in m.content
      else m.content -%}
  {{- '<' + m.role|title + '>' + content|trim + '%s|%d' % (m.role, loop.index) -}}
  {{- "{:>8}".format(m.role) ~ loop.index0 ~ loop.length ~ loop.revindex -}}
  {%- set ns.seen = ns.seen + [m.role] -%}
  {%- set ns.text = ns.text ~ content[:2] -%}
  {%- if loop.index == 30 %}{% break %}{% endif -%}
{%- endfor -%}
{{- ns.seen|unique|join(',') }} {{ ns.text|length }} {{ quoted({'a': 1, 'b': {'c': 'd\\ne'}}) -}}
{{- messages|selectattr('role', 'equalto', 'user')|map(attribute='content')|list|length -}}
{{- messages|tojson(indent=2)|length }} {{ range(5)|list }} {{ none }} {{ x is defined -}}
{%- set block %}{{ messages|length }} messages{% endset -%}{{ block|upper|center(30) -}}
{%- for n in [[1, [2, 3]], 4] recursive %}{% if n is iterable %}({{ loop(n) }}){% else %}{{ n }}
{%- endif %}{% endfor -%}
{%- if add_generation_prompt %}<assistant>{% endif -%}
"""


def plainly(monkeypatch, *args):
    """What the sandbox makes of it that counts nothing."""

    class Plain(ImmutableSandboxedEnvironment):
        def __init__(self, budget, **options):
            super().__init__(**options)

        def counted(self, name, function):
            return function

    with monkeypatch.context() as m:
        m.setattr("gwq_export.tokenizer.sandbox.BudgetEnvironment", Plain)
        return render(*args)


def templates():
    yield USUAL
    for path in sorted(SHARED.glob("tokenizers/*/chat_template.jinja")):
        yield path.read_text(encoding="utf-8")


@pytest.mark.parametrize("messages", [USER, TALK], ids=["user", "talk"])
def test_usual_templates_give_what_they_gave(monkeypatch, messages):
    for template in templates():
        args = template, messages, True, "<s>", "</s>"
        assert render(*args) == plainly(monkeypatch, *args)


def test_long_chats_have_what_they_need():
    """2,001 messages, and one of two million characters."""
    many = [{"role": "user", "content": "word " * 100}] * 2001
    assert len(render(USUAL.replace("30", "3000"), many, True, "", "")) > 900_000
    long = [{"role": "user", "content": "word " * 400_000}]
    assert len(render(USUAL, long, True, "", "")) > 1_999_990


LOOP = "{% for i in range(1000) %}"


def again(expression):
    """A template in which ns.x becomes that, a thousand times."""
    start = "{% set ns = namespace(x='aaaaaaaa') %}" + LOOP
    return start + "{% set ns.x = " + expression + " %}{% endfor %}"


GREEDY = {
    "loops": LOOP * 5 + "{% endfor %}" * 5,
    "loops by a condition": LOOP * 3 + "{% for j in range(1000) if j < 0 %}{% endfor %}" * 2
    + "{% endfor %}" * 3,
    "text": LOOP * 4 + "x" * 100 + "{% endfor %}" * 4,
    "macros": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}"
    "{{ f(60) }}",
    "blocks": "{% set ns = namespace(x='aaaa') %}" + LOOP
    + "{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = y %}{% endfor %}",
    "joined": again("ns.x ~ ns.x"),
    "added": again("ns.x + ns.x"),
    "multiplied": again("ns.x * 3"),
    "lists": again("[ns.x, ns.x]") + "{{ ns.x }}",
    "mappings": again("{'a': ns.x, 'b': ns.x}") + "{{ ns.x|tojson }}",
    "replaced": again("ns.x|replace('a', ns.x)"),
    "replaced by a method": again("ns.x.replace('a', ns.x)"),
    "joined by a filter": again("[ns.x, ns.x]|join(ns.x)"),
    "joined by a method": again("ns.x.join([ns.x, ns.x])"),
    "formatted": again("'%s%s' % (ns.x, ns.x)"),
    "formatted by a filter": again("'%s%s'|format(ns.x, ns.x)"),
    "formatted by a method": again("'{0}{0}'.format(ns.x)"),
    "numbers": "{% set ns = namespace(x=7) %}" + LOOP + "{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "a repetition": "{{ 'a' * 100000000 }}",
    "a list": "{{ [1] * 100000000 }}",
    "a power": "{{ 9 ** 9999999 }}",
    "a width": "{{ 'a'|center(100000000) }}",
    "a method's width": "{{ 'a'.ljust(100000000) }}",
    "a width of %": "{{ '%100000000d' % 1 }}",
    "a width in a format": "{{ '{:{}}'.format(1, 100000000) }}",
    "an indent": "{{ messages|tojson(indent=100000000) }}",
    "a batch": "{{ [1]|batch(100000000, 2)|list }}",
    "digits": "{{ 5|round(100000000, 'floor') }}",
    "bytes": "{{ (1).to_bytes(100000000, 'big') }}",
    "comparisons": "{% set x = range(90000)|list %}" + LOOP + "{{ x == x[:] }}{% endfor %}",
    "slices": "{% set x = 'a' * 4000000 %}" + LOOP * 2 + "{% set y = x[1:] %}" + "{% endfor %}" * 2,
    "a sum of lists": "{{ [[1], [2]]|sum(start=[]) }}",
    "recursion": "{% for x in [[1]] recursive %}{{ loop([x, x]) }}{% endfor %}",
    "recursion by a condition": "{% for x in [1] if x recursive %}{% endfor %}",
    "paragraphs": "{{ lipsum(100000000) }}",
    "another template": "{% include 'x' %}",
    "nesting": "{{ " + "(" * 5000 + " }}",
    "a long sum": "{{ " + "+".join("1" * 5000) + " }}",
    "length": "x" * ((1 << 20) + 1),
}  # fmt: skip


@pytest.fixture
def little_memory():
    """One gigabyte more than there is in use."""
    resource = pytest.importorskip("resource")
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    most = pages * resource.getpagesize() + (1 << 30)
    resource.setrlimit(resource.RLIMIT_AS, (most, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def refused(name):
    with pytest.raises(GwqError) as caught:
        render(GREEDY[name], USER, True, "<s>", "</s>")
    assert "chat template" in str(caught.value) and str(caught.value).isprintable()
    assert len(str(caught.value)) < 600 and not isinstance(caught.value, NoMemory)


@pytest.mark.parametrize("name", GREEDY)
def test_greedy_templates_are_refused(monkeypatch, little_memory, name):
    """With a tenth of the steps, for the time of the tests."""
    monkeypatch.setattr("gwq_export.limits.TEMPLATE_WORK", 1 << 17)
    start = time.thread_time()
    refused(name)
    assert time.thread_time() - start < 3


def test_all_steps_take_seconds():
    start = time.thread_time()
    refused("macros")
    assert time.thread_time() - start < 10


def test_time_is_limited(monkeypatch):
    """Whatever the steps are worth."""
    monkeypatch.setattr("gwq_export.limits.TEMPLATE_WORK", 1 << 60)
    monkeypatch.setattr("gwq_export.limits.TEMPLATE_SECONDS", 0.2)
    with pytest.raises(GwqError, match="more than 0 seconds"):
        render(GREEDY["loops"], USER, True, "", "")


def test_memory_is_not_the_templates_fault(monkeypatch):
    def short(*args):
        raise MemoryError

    monkeypatch.setattr("gwq_export.tokenizer.sandbox.BudgetEnvironment.from_string", short)
    with pytest.raises(NoMemory, match="not enough memory"):
        render("x", USER, True, "", "")


def test_weights():
    assert weight("abc") == 4 and weight(["abc", 1]) == 6 and weight({"a": "bc"}) == 6
    assert weight(range(10)) == 11 and weight(None) == 1
    with pytest.raises(Exceeded):
        weight(1 << 300)
