"""`bitlab generate`: text from a language model, as it comes."""

import sys
import time
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bitcli.options import Device, GgufFile, Json, Kernel, Model, Revision, Seed, Threads, TokenizerPath
from bitcli.output import print_json, say

if TYPE_CHECKING:
    import torch

DEFAULT_NEW_TOKENS = 128


def generate(
    model: Model,
    prompt: Annotated[
        str, typer.Option("--prompt", "-p", show_default=False, help="The text to continue; - reads it from stdin.")
    ],
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-new-tokens",
            "-n",
            min=1,
            show_default=False,
            help=f"Default: {DEFAULT_NEW_TOKENS}, or as many as the context has room for.",
        ),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            show_default=False,
            help="Draw tokens at random, from logits divided by this. 0 takes the likeliest: the default without the "
            "next three options.",
        ),
    ] = None,
    top_k: Annotated[int | None, typer.Option(min=1, show_default=False, help="Draw from the k likeliest.")] = None,
    top_p: Annotated[
        float | None,
        typer.Option(
            min=0.0, max=1.0, show_default=False, help="Draw from the fewest that have this probability together."
        ),
    ] = None,
    seed: Seed = None,
    stop: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", show_default=False, help="End after this text. Can be given several times."),
    ] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Put the prompt into the tokenizer's chat template.")] = False,
    token_ids: Annotated[
        bool, typer.Option("--token-ids", help="The prompt is token ids, such as '1 15 7', and so is the output.")
    ] = False,
    tokenizer: TokenizerPath = None,
    threads: Threads = None,
    device: Device = "cpu",
    kernel: Kernel = None,
    revision: Revision = None,
    gguf_file: GgufFile = None,
    json: Json = False,
) -> None:
    """Continue a prompt. Text goes to stdout as it is made, tokens a second to stderr when it is done.

    Prefill is the time until the first token, decode that of the others; printing is not counted.
    """
    import torch

    from bitcli.machine import this_machine
    from bitcli.models import load_model, load_tokenizer, model_path, tokenizer_path
    from bitcli.text import prompt_ids
    from bitcore.exceptions import ArgumentError
    from bitmodels.formats import inspect_checkpoint
    from bitmodels.transformer import BitTransformerModel

    if token_ids:
        _refuse_text_options({"--chat": chat, "--stop": stop, "--tokenizer": tokenizer})
    text = sys.stdin.read().removesuffix("\n") if prompt == "-" else prompt
    sampling = _sampling(temperature, top_k, top_p, seed)
    with this_machine(threads, device, kernel) as on:
        path = model_path(model, revision, gguf_file)
        found = None if token_ids else tokenizer_path(path, tokenizer)
        if found is None and not token_ids:
            inspect_checkpoint(path)  # a folder that holds no model is told to be none
            expected = "--tokenizer PATH, or --token-ids with a prompt such as '1 15 7'"
            raise ArgumentError("the tokenizer", f"missing: {model} has none", expected)
        vocabulary = None if found is None else load_tokenizer(found)
        prompted = prompt_ids(text, vocabulary, chat)
        loaded = load_model(path).to(on)
        if not isinstance(loaded, BitTransformerModel):
            raise ArgumentError("MODEL", f"a {loaded.model_type}", "a language model")
        room = loaded.config.max_length - len(prompted)
        tokens = loaded.generate(
            [prompted],
            stream=True,
            max_new_tokens=max_new_tokens or max(1, min(DEFAULT_NEW_TOKENS, room)),
            eos_token_id=loaded.config.end_tokens(vocabulary),
            stop_strings=stop or (),
            tokenizer=vocabulary,
            generator=None if seed is None else torch.Generator(on).manual_seed(seed),
            **sampling,
        )
        answer = _shown(iter(tokens), len(prompted), vocabulary, quiet=json)
    if json:
        print_json({"model": model, "prompt_ids": prompted, **answer})


def _refuse_text_options(options: dict[str, object]) -> None:
    given = [name for name, value in options.items() if value]
    if given:
        raise typer.BadParameter(f"--token-ids takes and gives token ids, not text: leave out {', '.join(given)}")


def _sampling(temperature: float | None, top_k: int | None, top_p: float | None, seed: int | None) -> dict[str, Any]:
    """The options of BitTransformerModel.generate that say how tokens are drawn."""
    others = {"--top-k": top_k, "--top-p": top_p, "--seed": seed}
    given = [name for name, value in others.items() if value is not None]
    if temperature == 0 and given:
        raise typer.BadParameter(f"--temperature 0 takes the likeliest token: leave out {', '.join(given)}")
    if not temperature and not given:
        return {"do_sample": False}
    return {"do_sample": True, "temperature": temperature, "top_k": top_k, "top_p": top_p}


def _shown(tokens: "Iterator[torch.Tensor]", prompted: int, tokenizer: Any, quiet: bool) -> dict[str, Any]:
    """Prints tokens as they come, and their rates at the end, also when interrupted. Returns all of that."""
    from bitmodels.text_stream import TextStream

    stream = None if tokenizer is None else TextStream(partial(tokenizer.decode, skip_special_tokens=True))
    made: list[int] = []
    seconds: list[float] = []
    try:
        for token, taken in _timed(tokens):
            made.append(token)
            seconds.append(taken)
            piece = f"{token} " if stream is None else stream.add(token)
            if not quiet:
                print(piece, end="", flush=True)
    finally:
        rest = "" if stream is None or not made else stream.end()
        rates = {"prefill": _rate(prompted, seconds[:1]), "decode": _rate(len(made) - 1, seconds[1:])}
        if made and not quiet:
            print(rest)
            say("note", "; ".join(f"{name} {_sentence(rate)}" for name, rate in rates.items() if rate["seconds"]))
    return {"token_ids": made, "text": None if stream is None else stream.text, **rates}


def _timed(tokens: "Iterator[torch.Tensor]") -> Iterator[tuple[int, float]]:
    """Each token with the seconds that it took."""
    while True:
        start = time.perf_counter()
        token = next(tokens, None)
        if token is None:
            return
        yield int(token), time.perf_counter() - start


def _rate(tokens: int, seconds: list[float]) -> dict[str, Any]:
    total = sum(seconds)
    return {"tokens": max(tokens, 0), "seconds": total, "tokens_per_s": tokens / total if total > 0 else None}


def _sentence(rate: dict[str, Any]) -> str:
    return f"{rate['tokens']} tokens in {rate['seconds']:.3g} s, {rate['tokens_per_s']:.4g} tokens/s"
