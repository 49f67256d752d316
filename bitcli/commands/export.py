"""`bitlab export`: a language model for other programs."""

from typing import Annotated, Literal

import typer

from bitcli.options import Destination, GgufFile, Json, Model, NoTokenizer, Overwrite, Revision, TokenizerPath
from bitcli.output import print_facts, print_json, say, size, track


def export(
    model: Model,
    dst: Destination,
    format: Annotated[
        Literal["hf", "gguf"],
        typer.Option(show_default=False, help="hf: a folder for transformers. gguf: a file for llama.cpp."),
    ],
    type: Annotated[
        Literal["TQ2_0", "TQ1_0", "Q2_0", "I2_S"] | None,
        typer.Option(show_default=False, help="Of the ternary weights in a GGUF file. Default: TQ2_0."),
    ] = None,
    tokenizer: TokenizerPath = None,
    tokenizer_pre: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            show_default=False,
            help="For GGUF: llama.cpp's name of the pre-tokenizer, llama-bpe for Llama 3 and BitNet b1.58 2B4T. "
            "A wrong one degrades output.",
        ),
    ] = None,
    no_tokenizer: NoTokenizer = False,
    revision: Revision = None,
    gguf_file: GgufFile = None,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Write a language model as transformers or llama.cpp loads it, with its tokenizer.

    docs/models.md says which models each format can hold; where one cannot, the message says which can.
    """
    from bitcli.destination import check_new_file, new_directory
    from bitcli.models import copy_tokenizer, load_model, load_tokenizer, model_path, tokenizer_path
    from bitmodels import export_gguf, export_hf
    from bitmodels.progress import show_progress

    if format == "hf" and (type is not None or tokenizer_pre is not None):
        raise typer.BadParameter("--type and --tokenizer-pre are for --format gguf")
    path = model_path(model, revision, gguf_file)
    vocabulary = None if no_tokenizer else tokenizer_path(path, tokenizer)
    if format == "hf":
        with new_directory(dst, overwrite) as directory, show_progress(track):
            export_hf(load_model(path), directory)
            if vocabulary is not None:
                copy_tokenizer(vocabulary, directory)
            nbytes = sum(file.stat().st_size for file in directory.iterdir())
    else:
        if vocabulary is not None and tokenizer_pre is None:
            raise typer.BadParameter("a GGUF file with a tokenizer needs --tokenizer-pre NAME; or say --no-tokenizer")
        check_new_file(dst, overwrite)
        loaded = None if vocabulary is None else load_tokenizer(vocabulary)
        with show_progress(track):
            export_gguf(load_model(path), dst, type or "TQ2_0", loaded, tokenizer_pre)
        nbytes = dst.stat().st_size
    if vocabulary is None and not no_tokenizer:
        say("note", f"{model} has no tokenizer, nor has {dst}")
    if json:
        written = {"dst": str(dst), "format": format, "nbytes": nbytes, "tokenizer": vocabulary is not None}
        print_json({"model": model, **written})
    else:
        print_facts({"written": dst, "bytes": f"{nbytes:,} ({size(nbytes)})"})
