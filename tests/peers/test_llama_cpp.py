"""llama.cpp reads our ordinary files, computes what we do, and refuses our tile types by name."""

import numpy as np
import pytest

import gwq_export
from gwq_export.evaluation.perplexity import log_softmax
from gwq_export.format.types import TYPES
from gwq_export.format.writer import Writer
from gwq_export.tokenizer.from_hf import PROBE, to_metadata
from gwq_export.tokenizer.tokenizer import Tokenizer
from tests.support.llama_cpp import IDS, likeliest, peer, tokens
from tests.support.models import TINY_MODELS, save_tiny
from tests.support.paths import DATA, REFERENCE

# llama.cpp knows Gemma's factor of the scores and EXAONE's windows by the number of blocks alone,
# and whether experts' weights add up to 1 by the architecture
OTHER = ("gemma2-scalar", "qwen3moe-plain", "qwen2moe-normed", "exaone4")
OTHER += ("lfm3", "lfm3-plain")  # the newest one does not know LFM3
SAME = [name for name in TINY_MODELS if name not in OTHER]


@pytest.mark.parametrize(
    "name, type",
    [(name, "f32") for name in SAME]
    + [("reference", t) for t in ("f32", "f16", "bf16", "q8_0", "q4_0")],
)
def test_same_logprobs(tiny, exported, name, type):
    path, _ = exported(REFERENCE if name == "reference" else tiny(name), type=type)
    # llama.cpp computes F16, BF16 and block matrices with rounded activations, we with float32
    # ones; its KV cache is F16
    assert (
        difference(path)
        < {"f32": 1e-2, "f16": 1e-2, "bf16": 5e-2, "q8_0": 0.15, "q4_0": 0.15}[type]
    )


def difference(path, base=False):
    """The largest one between llama.cpp's log-probabilities and ours."""
    done = peer(path)
    assert done.returncode == 0, done.stderr[-2000:]
    top = likeliest(done.stdout.splitlines()[-1])
    assert len(top) == 50
    ours = log_softmax(gwq_export.load(path, base=base).logits(IDS)[-1])
    return np.abs([ours[t["id"]] - t["logprob"] for t in top]).max()


def test_windows_of_exaone(exported, tmp_path):
    """It has them with 64 blocks."""
    config_class, settings = TINY_MODELS["exaone4"]
    settings = settings | {"num_hidden_layers": 64, "hidden_size": 48, "initializer_range": 0.03}
    assert difference(exported(save_tiny(tmp_path, config_class, **settings), type="f32")[0]) < 1e-2


@pytest.mark.parametrize("name", ["q4_0", "iq4_nl"])
def test_types_coded_under_the_curvature(exported, name):
    assert difference(exported(stock=name)[0]) < 0.15


@pytest.mark.parametrize("options", [{"stock": "q4_0"}, {"type": "bridge"}])
def test_experts_coded_under_the_curvature(exported, tmp_path, options):
    settings = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_local_experts": 4,
    }
    folder = save_tiny(tmp_path / "hf", "MixtralConfig", initializer_range=0.06, **settings)
    assert (
        difference(exported(folder, samples=1, ctx=64, **options)[0], base="type" in options) < 0.15
    )


def test_llama_cpp_runs_the_base_of_a_bridge(exported):
    """It ignores the deltas, which would change more than its rounding of activations does."""
    path, _ = exported(type="bridge", outliers=0.1)
    assert difference(path, base=True) < 0.15 < difference(path)


def test_llama_cpp_itself_is_nearer_with_our_codes(exported):
    """KL divergence of what it computes from our Q4_0 files to the float32 model, over all tokens
    after 40 prompts.
    """
    text = (DATA / "eval.txt").read_text()
    reference = gwq_export.load(exported(type="f32")[0])
    ids = [int(i) for i in reference.tokenizer.encode(text[:20000])]
    prompts = [ids[at : at + 48] for at in range(0, 40 * 48, 48)]
    found = {}
    p = np.array([log_softmax(reference.logits(prompt)[-1]) for prompt in prompts])
    for name, options in (
        ("plain", {"type": "q4_0"}),
        ("ours", {"stock": "q4_0"}),
        ("bridge", {"type": "bridge", "outliers": 0.1}),
    ):
        done = peer(exported(**options)[0], prompts, p.shape[1])
        q = np.full(p.shape, np.nan)
        lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
        for row, line in zip(q, lines, strict=True):
            for token in likeliest(line):
                row[token["id"]] = token["logprob"]
        found[name] = (np.exp(p) * (p - q)).sum(1).mean()
    assert 0 < found["ours"] < 0.75 * found["plain"], found
    # it runs the base, which is the same
    assert found["bridge"] == pytest.approx(found["ours"], rel=1e-6)


def test_tile_types_are_refused_by_name(exported):
    done = peer(exported(type="gwq4")[0])
    assert "blk.0.attn_q.weight" in done.stderr and "invalid ggml type 877745991" in done.stderr


@pytest.mark.parametrize(
    "name", ["smollm", "llama-bpe", "gpt-4o", "deepseek-v3", "kimi-k2", "bloom", "default", None]
)
def test_stock_names_mean_the_same(tmp_path, name):
    """Our words are llama.cpp's, in a model of one small block with our vocabulary and the name of
    another pre-tokenizer, or none (files older than the key).
    """
    shapes = {
        "token_embd": (8192, 32),
        "output_norm": (32,),
        "blk.0.attn_norm": (32,),
        "blk.0.ffn_norm": (32,),
    }
    shapes |= {
        f"blk.0.{part}": (32, 32)
        for part in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    }
    numbers = {
        "context_length": 64,
        "embedding_length": 32,
        "block_count": 1,
        "feed_forward_length": 32,
        "attention.head_count": 2,
    }
    numbers |= {"attention.layer_norm_rms_epsilon": 1e-5, "rope.dimension_count": 16}
    keys = {
        "general.architecture": "llama",
        **{f"llama.{key}": value for key, value in numbers.items()},
    }
    vocabulary = to_metadata(REFERENCE, 8192) | {"tokenizer.ggml.pre": name}
    if name is None:
        del vocabulary["tokenizer.ggml.pre"]
    with Writer(
        tmp_path / "m.gguf",
        keys | vocabulary,
        [(f"{n}.weight", TYPES["f32"], shape) for n, shape in shapes.items()],
    ) as writer:
        for tensor, shape in shapes.items():
            writer.write(
                f"{tensor}.weight", np.full(shape, 0.01, np.float32).view(np.uint8).reshape(-1)
            )
    text = PROBE.read_bytes().decode().replace("\0", "")
    expected = Tokenizer(vocabulary).encode(text, special=False, bos=False)
    assert tokens(tmp_path / "m.gguf", text) == expected
