"""lm-evaluation-harness on a GGUF file: the model "gwq" for its registry (extra: lm-eval).

    python -m gwq_export.evaluation.lm_eval run --model gwq \\
        --model_args path=model.gguf --tasks piqa,arc_easy

takes the arguments of `lm-eval`. In Python, import this module and pass model="gwq" to
`lm_eval.simple_evaluate`.
"""

import sys
from collections.abc import Iterable
from os import PathLike
from typing import Any

from gwq_export.errors import not_imported
from gwq_export.evaluation.predictors import load, runtime_logits
from gwq_export.evaluation.tasks import encode_pair, score
from gwq_export.runtime.sampling import Sampling

try:
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
    from tqdm import tqdm
except ImportError as e:
    unusable = not_imported(e, "lm-evaluation-harness", "lm-eval")
    if __name__ == "__main__":
        print(f"gwq_export.evaluation.lm_eval: error: {unusable}", file=sys.stderr)
        sys.exit(2)
    raise unusable from None


@register_model("gwq")
class GwqLM(LM):
    """Any GGUF file of a supported architecture, on the CPU, one request at a time.

    path: of the file. threads: int, or None for all CPUs. max_gen_toks: tokens at most where a task
    does not say. The harness passes batch_size, max_batch_size and device to every model; here they
    change nothing.
    """

    def __init__(
        self,
        path: str | PathLike[str],
        threads: int | None = None,
        max_gen_toks: int = 256,
        batch_size: Any = None,
        max_batch_size: Any = None,
        device: Any = None,
    ) -> None:
        super().__init__()
        self.path = str(path)
        self.max_gen_toks = int(max_gen_toks)
        self.model = load(path, threads)
        self.predictor = runtime_logits(self.model)

    def loglikelihood(
        self, requests: list[Any], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """[(log-likelihood of the continuation in nats, is it what greedy decoding gives)]"""
        out = []
        for request in tqdm(requests, desc="loglikelihood", disable=disable_tqdm):
            context, continuation = request.args
            head, tail = encode_pair(self.model.tokenizer, context, continuation, special=True)
            total, likeliest = score(self.predictor, head, tail)
            out.append((total, likeliest.tolist() == tail))
        return out

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """[log-likelihood of a whole text in nats], in windows of the model's context.

        No token is scored twice.
        """
        tok = self.model.tokenizer
        out = []
        for request in tqdm(requests, desc="loglikelihood_rolling", disable=disable_tqdm):
            ids = tok.encode(request.args[0], bos=False)
            start = tok.eos if tok.bos is None else tok.bos
            rolling = get_rolling_token_windows(
                token_list=ids, prefix_token=start, max_seq_len=self.model.ctx, context_len=1
            )
            out.append(
                sum(score(self.predictor, *make_disjoint_window(pair))[0] for pair in rolling)
            )
        return out

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """[text up to the request's first stop string, a stop token or the limit of tokens]"""
        out = []
        for request in tqdm(requests, desc="generate_until", disable=disable_tqdm):
            context, options = request.args
            stops = options.get("until") or []
            stops = [stops] if isinstance(stops, str) else stops
            n = min(int(options.get("max_gen_toks", self.max_gen_toks)), self.model.ctx - 1)
            temp = float(options.get("temperature", 0.0)) if options.get("do_sample") else 0.0
            sampling = Sampling(
                temp, int(options.get("top_k", 0)), float(options.get("top_p", 1.0)), seed=0
            )
            prompt = self.model.tokenizer.encode(context)[-(self.model.ctx - n) :]
            out.append(_until(self.model.stream(prompt, n, sampling), stops))
        return out

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The prompt of messages, by the file's chat template."""
        return self.model.tokenizer.chat(chat_history, add_generation_prompt)

    def chat_template(self, chat_template: bool | str = False) -> str:
        """The file's chat template, for the harness's records."""
        return self.model.tokenizer.chat_template or ""

    @property
    def tokenizer_name(self) -> str:
        """What the harness's cache tells tokenizers apart by."""
        return self.path


def _until(pieces: Iterable[str], stops: list[str]) -> str:
    """The joined pieces up to the first stop string; empty stop strings are ignored."""
    text = ""
    for piece in pieces:
        text += piece
        starts = [at for at in (text.find(stop) for stop in stops if stop) if at >= 0]
        if starts:
            return text[: min(starts)]
    return text


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
