"""`bitlab convert`: any model that BitLab reads, in BitLab's own format."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from bitcli.options import Destination, DtypeName, GgufFile, Json, NoTokenizer, Overwrite, Revision, TokenizerPath
from bitcli.output import print_facts, print_json, say, size, track

if TYPE_CHECKING:
    from bitcore import BitQuantConfig
    from bitmodels import BitModelBase


def convert(
    src: Annotated[
        str,
        typer.Argument(
            metavar="SRC",
            show_default=False,
            help="A folder, a GGUF file, or owner/name on the Hugging Face hub; docs/models.md lists the formats.",
        ),
    ],
    dst: Destination,
    head_dtype: Annotated[
        Literal["float", "int8", "int4"] | None,
        typer.Option(
            show_default=False, help="Weights of a language model's embeddings and head. Default: as they are."
        ),
    ] = None,
    storage_format: Annotated[
        Literal["2bit", "base3"] | None,
        typer.Option(
            show_default=False,
            help="Of ternary weights; base3 is 1.6 bits a weight. Default: 2bit, or as it is in a BitLab model.",
        ),
    ] = None,
    activations: Annotated[
        Literal["int8", "float32"] | None,
        typer.Option(show_default=False, help="int8, or float32: as they come. Default: as the model was trained."),
    ] = None,
    dtype: Annotated[
        DtypeName | None, typer.Option(show_default=False, help="Of all that is not packed. Default: as it is.")
    ] = None,
    keep_masters: Annotated[
        bool, typer.Option("--keep-masters", help="Keep float master weights, for training, if SRC has them.")
    ] = False,
    tokenizer: TokenizerPath = None,
    no_tokenizer: NoTokenizer = False,
    revision: Revision = None,
    gguf_file: GgufFile = None,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Write a model in BitLab's own format, ready to run: config.json, model.safetensors, and its tokenizer.

    SRC may be Hugging Face bitnet, ternary floats or GGUF, or a BitLab model; one in training is deployed: its weights
    are quantized and packed.
    """
    import torch

    from bitcli.destination import new_directory
    from bitcli.models import copy_tokenizer, is_own_model, load_model, model_path, tokenizer_path
    from bitmodels.progress import show_progress

    with new_directory(dst, overwrite) as directory:
        path = model_path(src, revision, gguf_file)
        vocabulary = None if no_tokenizer else tokenizer_path(path, tokenizer)
        if is_own_model(path):
            model = _read_own(path, keep_masters, dtype, head_dtype, _quant_config(path, storage_format, activations))
        else:
            model = load_model(
                path,
                dtype=None if dtype is None else getattr(torch, dtype),
                head_dtype=head_dtype,
                quant_config=_quant_config(path, storage_format, activations),
                deploy=not keep_masters,
            )
        with show_progress(track):
            model.save_pretrained(directory)
        if vocabulary is not None:
            copy_tokenizer(vocabulary, directory)
        result = {
            "src": src,
            "dst": str(dst),
            "model_type": model.model_type,
            "deployed": model.is_deployed,
            "nbytes": sum(tensor.nbytes for tensor in model.state_dict().values()),
            "files": {file.name: file.stat().st_size for file in sorted(directory.iterdir())},
        }
    if vocabulary is None and not no_tokenizer:
        say("note", f"{src} has no tokenizer, nor has {dst}")
    if json:
        print_json(result)
        return
    state = "deployed" if model.is_deployed else "with master weights"
    files = ", ".join(f"{name} {size(nbytes)}" for name, nbytes in result["files"].items())
    print_facts({"written": dst, "model": f"{model.model_type}, {state}", "files": files})


def _read_own(
    path: Path,
    keep_masters: bool,
    dtype: str | None,
    head_dtype: str | None,
    quant_config: "BitQuantConfig | None",
) -> "BitModelBase":
    """BitLab's own model, deployed unless its masters are wanted. They are quantized before anything is cast."""
    import torch

    from bitcli.models import load_model
    from bitcore.exceptions import ArgumentError
    from bitmodels.checkpoint import read_config

    target = None if dtype is None else getattr(torch, dtype)
    if read_config(path).deployed:
        if keep_masters:
            raise ArgumentError("SRC", f"{path}, which is deployed", "one with master weights, or no --keep-masters")
        return load_model(path, head_dtype=head_dtype, quant_config=quant_config, dtype=target)
    model = load_model(path, head_dtype=head_dtype, quant_config=quant_config)
    if not keep_masters:
        model.deploy()
    return model if target is None else model.to(target)


def _quant_config(path: Path, storage_format: str | None, activations: str | None) -> "BitQuantConfig | None":
    """The checkpoint's own config with what was asked for; None: as it is."""
    from bitcli.models import is_own_model
    from bitcore import BitQuantConfig
    from bitmodels.adapters import adapt
    from bitmodels.checkpoint import read_config
    from bitmodels.formats import open_checkpoint

    asked = {"storage_format": storage_format, "activation_dtype": activations}
    given = {name: value for name, value in asked.items() if value is not None}
    if not given:
        return None
    own = read_config(path) if is_own_model(path) else adapt(open_checkpoint(path))
    return BitQuantConfig.model_validate({**own.quant_config.model_dump(), **given})
