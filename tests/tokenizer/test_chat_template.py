"""Chat templates: what they may use, and what is refused."""

import shutil

import pytest

from gwq_export import GwqError
from gwq_export.tokenizer.from_hf import to_metadata
from gwq_export.tokenizer.tokenizer import Tokenizer
from tests.support.tokenizers import GPT2_CONFIG, byte_level, save


@pytest.fixture
def chat(tmp_path):
    keys = to_metadata(save(tmp_path, byte_level(), tokenizer_config=GPT2_CONFIG), 500)
    return lambda template, messages=None, **options: Tokenizer(
        keys | {"tokenizer.chat_template": template}
    ).chat(messages or [{"role": "user", "content": "a<b"}], **options)


def test_chat_template(chat):
    template = (
        "{% for m in messages %}\n  {% if loop.first %}\n{{ bos_token }}{% endif %}\n"
        "<{{ m.role }}>{{ m['content'] }}{{ eos_token }}\n{% endfor %}\n"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    assert chat(template) == "<|endoftext|><user>a<b<|endoftext|>\n<assistant>"
    assert chat(template, add_generation_prompt=False) == "<|endoftext|><user>a<b<|endoftext|>\n"


@pytest.mark.parametrize(
    "template, text",
    [
        ("{{ messages[0] | tojson }}", '{"role": "user", "content": "a<b"}'),
        ("{{ {'a': 'é'} | tojson(indent=1) }}", '{\n "a": "é"\n}'),
        ("{{ strftime_now('%Y')[:2] }}", "20"),
        ("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
        ("{% generation %}x{% endgeneration %}{% if tools is not none %}y{% endif %}", "x"),
        ("{{ 'ab'.startswith('a') }}", "True"),
    ],
)
def test_template_functions(chat, template, text):
    assert chat(template) == text


@pytest.mark.parametrize(
    "template, word",
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{% for %}", "chat template"),
        ("{{ 1 // 0 }}", "chat template"),
        ("{{ messages.append(1) }}", "chat template"),
        ("{{ ''.__class__.__mro__ }}", "chat template"),
        ("{{ x.y.z }}", "chat template"),
        ("{% for i in range(10000000) %}{% endfor %}", "chat template"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "chat template"),
        ("{% include 'etc' %}", "chat template"),
    ],
)
def test_bad_templates(chat, template, word):
    with pytest.raises(GwqError, match=word) as caught:
        chat(template)
    assert "chat template" in str(caught.value)


def test_chat_template_files(tmp_path):
    named = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    folder = save(tmp_path, byte_level(), tokenizer_config={"chat_template": named})
    keys = to_metadata(folder, 500)
    assert keys["tokenizer.chat_template"] == "D"
    assert keys["tokenizer.chat_template.tool_use"] == "T"
    assert keys["tokenizer.chat_templates"] == ["tool_use"]
    (folder / "chat_template.jinja").write_text("J")
    (folder / "additional_chat_templates").mkdir()
    for name in ("tool_use", "rag"):
        (folder / "additional_chat_templates" / f"{name}.jinja").write_text(name)
    keys = to_metadata(folder, 500)
    assert Tokenizer(keys).chat([]) == "J"
    assert keys["tokenizer.chat_templates"] == ["rag", "tool_use"]
    assert [keys[f"tokenizer.chat_template.{name}"] for name in ("rag", "tool_use")] == [
        "rag",
        "tool_use",
    ]
    shutil.rmtree(folder / "additional_chat_templates")
    save(tmp_path, byte_level(), tokenizer_config={})
    (folder / "chat_template.jinja").unlink()
    tok = Tokenizer(to_metadata(folder, 500))
    assert tok.chat_template is None
    with pytest.raises(GwqError, match="no chat template"):
        tok.chat([])
