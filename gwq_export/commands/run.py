"""gwq-run: generate text."""

import sys

from gwq_export import GwqError, open_gguf
from gwq_export.console import add_base, make_parser, read_text


def parser():
    p = make_parser("gwq-run", "Generate text from a GGUF file.")
    p.add_argument("file", metavar="FILE.gguf")
    p.add_argument("-p", "--prompt", required=True, help="the prompt; - reads it from standard input")
    p.add_argument("-n", type=int, default=128, metavar="N", help="tokens at most (default 128, -1: until the context is full)")
    p.add_argument("--temp", type=float, default=0.0, help="temperature (default 0: always the likeliest token)")
    p.add_argument("--top-k", type=int, default=40)
    p.add_argument("--top-p", type=float, default=0.95)
    p.add_argument("--min-p", type=float, default=0.0)
    p.add_argument("--seed", type=int)
    p.add_argument("--ctx", type=int, metavar="N", help="context (default: the model's)")
    p.add_argument("--raw", action="store_true", help="do not wrap the prompt in the file's chat template")
    p.add_argument("-t", "--threads", type=int, metavar="N", help="CPU threads (default: all)")
    p.add_argument("--device", default="cpu", help="cpu")
    add_base(p)
    return p


def command(args, progress):
    from gwq_export.generate import Model, Sampling

    prompt = read_text("-", "-p") if args.prompt == "-" else args.prompt
    if not prompt:
        raise GwqError("the prompt is empty: give some text with -p")
    sampling = Sampling(args.temp, args.top_k, args.top_p, args.min_p, args.seed)
    model, stats, text = Model(open_gguf(args.file, args.base), args.device, args.threads, args.ctx), {}, []
    for piece in model.stream(prompt, args.n, sampling, chat=not args.raw, stats=stats):
        text.append(piece)
        print(piece, end="", flush=True)
    print()
    print(f"[prompt {stats['prompt_tokens']} tokens, {stats['prompt_tps']:.1f} t/s; generated {stats['tokens']}, "
          f"{stats['decode_tps']:.1f} t/s; stopped by {stats['stop']}]", file=sys.stderr)  # fmt: skip
    return {"text": "".join(text)} | stats
