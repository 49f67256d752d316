"""Arguments and options that several commands have."""

from pathlib import Path
from typing import Annotated, Literal

import typer

DtypeName = Literal["float32", "bfloat16", "float16"]

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        show_default=False,
        help="A folder, a GGUF file, or owner/name on the Hugging Face hub: BitLab's own format, or one that "
        "docs/models.md lists.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, and nothing else there.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace DST if it exists.")]
Revision = Annotated[
    str | None, typer.Option(show_default=False, help="Branch, tag or commit of a repository on the hub.")
]
GgufFile = Annotated[
    str | None, typer.Option(metavar="NAME", show_default=False, help="The GGUF file in a folder or repository.")
]
Threads = Annotated[
    int | None, typer.Option(min=1, max=4096, show_default=False, help="CPU threads. Default: as many as torch takes.")
]
Device = Annotated[
    str,
    # Named, because typer 0.27 takes a metavar that reads like the parameter for its name.
    typer.Option("--device", metavar="DEVICE", help="cpu, cuda, or one of several GPUs: cuda:1."),
]
Kernel = Annotated[
    str | None,
    typer.Option(metavar="NAME", show_default=False, help="The only kernel that may serve. Default: the best one."),
]
Seed = Annotated[  # as torch.Generator takes it
    int | None,
    typer.Option(min=-(2**63), max=2**64 - 1, show_default=False, help="Of the random numbers. Default: a new one."),
]
TokenizerPath = Annotated[
    str | None,
    typer.Option(metavar="PATH", show_default=False, help="Where the tokenizer lies. Default: beside the model."),
]
NoTokenizer = Annotated[bool, typer.Option("--no-tokenizer", help="Leave the tokenizer out.")]
Destination = Annotated[Path, typer.Argument(metavar="DST", show_default=False, help="Must not exist, or --overwrite.")]
