"""gwq-run: generate text, or chat."""

import argparse
import logging
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from gwq_export.commands.arguments import Parser, add_base, add_common, add_device, add_threads
from gwq_export.commands.console import Progress, ctrl_c_asks, explained, say_where
from gwq_export.errors import GwqError
from gwq_export.files import read_text
from gwq_export.machine import free_memory, size

if TYPE_CHECKING:
    from gwq_export.runtime.chat import Chat
    from gwq_export.runtime.model import Model

log = logging.getLogger("gwq_export")
MEMORY = "use a smaller --ctx, or --cache-type q8_0"
HELP = (
    "/clear forgets the conversation, /exit or Ctrl-D leaves, "
    "Ctrl-C stops an answer, /help shows this"
)


def parser() -> Parser:
    """Arguments of gwq-run."""
    p = Parser(
        "gwq-run",
        "Generate text from a GGUF file; without a prompt on a terminal, or with -i, chat with it.",
        [
            'gwq-run model.gguf -p "Why is the sky blue?" -n 200',
            "gwq-run model.gguf --ctx 8192 --cache-type q8_0        # a chat",
            "gwq-run model.gguf --draft smaller.gguf -f task.txt    # the same text, sooner",
            'gwq-run model.gguf --raw -p "Once upon a time" --temp 0.8 --seed 1',
        ],
        memory=MEMORY,
    )
    p.add_model("file", "FILE.gguf")
    group = p.add_argument_group("Prompt")
    group.add_argument("-p", "--prompt", help="the prompt; - reads it from standard input")
    group.add_argument(
        "-f", "--file", dest="prompt_file", metavar="FILE", help="read the prompt from a file"
    )
    group.add_argument(
        "-i", "--chat", action="store_true", help="chat; a prompt is the first message"
    )
    group.add_argument("--system", metavar="TEXT", help="the system message")
    group.add_argument(
        "--raw", action="store_true", help="do not wrap the prompt in the file's chat template"
    )
    group = p.add_argument_group("Length")
    group.add_argument(
        "-n",
        type=int,
        metavar="N",
        help="tokens at most (default 128, in a chat -1: until the context is full)",
    )
    group.add_argument(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help="end before this text; may be given several times",
    )
    group.add_argument("-c", "--ctx", type=int, metavar="N", help="context (default: the model's)")
    group = p.add_argument_group("Sampling")
    group.add_argument(
        "--temp",
        type=float,
        default=0.0,
        metavar="T",
        help="temperature (default 0: always the likeliest token)",
    )
    for flag, kind, default, metavar, text in (
        ("--top-k", int, 40, "N", "the N likeliest tokens only"),
        ("--top-p", float, 0.95, "P", "the likeliest tokens only that together have this share"),
        ("--min-p", float, 0.0, "P", "tokens only that have this share of the likeliest one's"),
    ):
        group.add_argument(
            flag, type=kind, default=default, metavar=metavar, help=f"{text} (default {default})"
        )
    group.add_argument(
        "--repeat-penalty",
        type=float,
        default=1.0,
        metavar="F",
        help="make tokens seen lately less likely (default 1: no)",
    )
    group.add_argument(
        "--repeat-last-n",
        type=int,
        default=64,
        metavar="N",
        help="how many tokens it looks at (default 64, -1: all)",
    )
    group.add_argument("-s", "--seed", type=int, metavar="N", help="the same text every time")
    group = p.add_argument_group("The run")
    add_threads(group)
    group.add_argument(
        "--cache-type",
        choices=["f16", "q8_0", "f32"],
        help="numbers of the KV cache (default f16; q8_0 takes half the memory)",
    )
    group.add_argument(
        "--no-lookup",
        action="store_true",
        help="compute no tokens ahead where the text repeats itself (the text is the same)",
    )
    group.add_argument(
        "--draft",
        metavar="FILE.gguf",
        help="compute tokens ahead that this smaller model with the same vocabulary guesses"
        " (the text is the same)",
    )
    add_device(group)
    add_base(group)
    add_common(group)
    return p


def command(args: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    """Run gwq-run; returns what --json prints."""
    from gwq_export.format.reader import Reader
    from gwq_export.runtime.chat import Chat
    from gwq_export.runtime.model import Model
    from gwq_export.runtime.sampling import Sampling, StopStrings

    prompt = _prompt(args)
    chatting = args.chat or (prompt is None and sys.stdin.isatty())
    if prompt is None and not chatting:
        raise GwqError(
            "there is no prompt: give one with -p TEXT, -f FILE or -p - (standard input), "
            "or chat with -i"
        )
    if prompt == "":
        raise GwqError("the prompt is empty: give some text with -p")
    sampling = Sampling(
        args.temp,
        args.top_k,
        args.top_p,
        args.min_p,
        args.seed,
        repeat_penalty=args.repeat_penalty,
        repeat_last_n=args.repeat_last_n,
    )
    StopStrings(args.stop)  # raises for an empty one, before the model is opened
    reader = Reader(args.file, base=args.base)
    model = Model(
        reader,
        device=args.device,
        threads=args.threads,
        ctx=args.ctx,
        cache=args.cache_type,
        lookup=not args.no_lookup,
        draft=args.draft,
        gpu_layers=args.gpu_layers,
    )
    say_where(model)
    if chatting:
        n = -1 if args.n is None else args.n
        _say_if_large(model, model.ctx)
        return _converse(Chat(model, args.system, sampling, n, args.stop, args.raw), prompt)
    assert prompt is not None
    messages: str | list[dict[str, str]] = prompt
    if args.system:
        if args.raw:
            raise GwqError("--system needs the chat template: leave out --raw")
        messages = [{"role": "system", "content": args.system}, {"role": "user", "content": prompt}]
    n = 128 if args.n is None else args.n
    stats: dict[str, Any] = {}
    text = _print_pieces(model.stream(messages, n, sampling, not args.raw, stats, args.stop))
    print()
    _say_if_full(stats, model.ctx)
    print(
        f"[prompt {stats['prompt_tokens']} tokens, {stats['prompt_tps']:.1f} t/s; "
        f"generated {stats['tokens']}, {stats['decode_tps']:.1f} t/s{_ahead(stats)}; "
        f"stopped by {stats['stop']}]",
        file=sys.stderr,
    )
    return {"text": text} | stats


def _ahead(stats: dict[str, Any]) -> str:
    """What became of tokens that were computed ahead, for the line of statistics."""
    text = ""
    if stats.get("guessed"):
        text += f", {stats['right']} of {stats['guessed']} guessed tokens right"
    if stats.get("drafted"):
        text += f", {stats['accepted']} of {stats['drafted']} drafted tokens accepted"
        text += f", {stats['speedup']:.2f} times as fast as one by one"
    return text


def _prompt(args: argparse.Namespace) -> str | None:
    """The text of -p or -f without the newline that ends a file; None if neither is given."""
    if args.prompt is not None and args.prompt_file is not None:
        raise GwqError("both -p and -f give a prompt: use one of them")
    if args.prompt_file is not None:
        return read_text(args.prompt_file, "-f").removesuffix("\n")
    return read_text("-", "-p").removesuffix("\n") if args.prompt == "-" else args.prompt


def _print_pieces(pieces: Iterator[str]) -> str:
    """Print text as it comes; returns all of it."""
    text = []
    for piece in pieces:
        text.append(piece)
        print(piece, end="", flush=True)
    return "".join(text)


def _say_if_large(model: "Model", ctx: int) -> None:
    """Warn when the KV cache of a full context will not fit into memory."""
    most, free = model.cache_bytes(ctx), free_memory()
    if free is not None and most > free:
        log.warning(
            "the KV cache of a full context (%d tokens) takes %s and %s are free:"
            " for so long a chat %s",
            ctx,
            size(most),
            size(free),
            MEMORY,
        )


def _say_if_full(stats: dict[str, Any], ctx: int) -> None:
    if stats["stop"] == "context":
        log.warning("stopped: the context of %d tokens is full", ctx)


def _lines(first: str | None) -> Iterator[str]:
    """What the user types, after the line `first`; without a prompt sign where it is a pipe."""
    if first is not None:
        yield first
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="replace")
    if not sys.stdin.isatty():
        yield from (line.rstrip("\r\n") for line in sys.stdin)
        return
    import readline  # noqa: F401, makes input() an editor with a history

    while True:
        try:
            yield input("> ")
        except EOFError:
            print()
            return


def _converse(chat: "Chat", first: str | None) -> dict[str, Any]:
    """The dialogue; first: the first message, if there is one already.

    Returns what --json prints: the last answer with its figures, all tokens generated, the number
    of turns.
    """
    result: dict[str, Any] = {
        "text": "",
        "tokens": 0,
        "prompt_tps": 0.0,
        "decode_tps": 0.0,
        "turns": 0,
    }
    if chat.raw:
        why = "--raw" if chat.model.tokenizer.chat_template else "the file has no chat template"
        log.warning("%s: every line continues the text as it is", why)
    print(HELP, file=sys.stderr)
    for line in _lines(first):
        match line.strip():
            case "":
                continue
            case "/exit":
                break
            case "/clear":
                chat.clear()
                continue
            case "/help":
                print(HELP, file=sys.stderr)
                continue
            case other if other.startswith("/") and other[1:].isalpha():
                print(f"there is no {other}: {HELP}", file=sys.stderr)
                continue
        stats: dict[str, Any] = {}
        try:
            with ctrl_c_asks() as halt:
                text = _print_pieces(chat.reply(line, stats, halt))
        except GwqError as e:
            print(f"error: {explained(e, MEMORY)}", file=sys.stderr)
            continue
        print()
        if stats["dropped"]:
            log.warning(
                "the context was full: the oldest turns (%d) were dropped before this answer",
                stats["dropped"],
            )
        _say_if_full(stats, chat.model.ctx)
        result |= stats | {
            "text": text,
            "tokens": result["tokens"] + stats["tokens"],
            "turns": result["turns"] + 1,
        }
    return result
