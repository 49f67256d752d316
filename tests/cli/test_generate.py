"""`bitlab generate`: text as it comes, the same as the model's own, and prompts that cannot be continued."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import CONTEXT, Models, Run, byte_tokenizer

from bitcore.kernels import KernelRegistry

PROMPT = "hé"
RATE = r"(\d+) tokens in \S+ s, \S+ tokens/s"
RATES = re.compile(rf"note: prefill {RATE}(; decode {RATE})?\n")
RunJson = Callable[..., Any]
NOT_HERE = next(name for name, kernel in KernelRegistry._kernels.items() if kernel.unavailable_reason() is not None)


def continuation(made: Models, prompt: list[int], **options: Any) -> list[int]:
    return made.model.generate([prompt], **options)[0, len(prompt) :].tolist()


@pytest.mark.parametrize("source", ["trained", "hf", "gguf"])
def test_text_is_that_of_the_model(source: str, made: Models, run: Run) -> None:
    tokenizer = byte_tokenizer()
    end = tokenizer.eos_token_id
    prompt = tokenizer.encode(PROMPT)
    expected = continuation(made, prompt, max_new_tokens=9, eos_token_id=end)
    result = run("generate", getattr(made, source), "--prompt", PROMPT, "-n", "9")
    assert result.exit_code == 0, result.stderr
    # The bytes: `stdout` turns the "\r\n" of a text that ends with "\r" into "\n".
    assert result.stdout_bytes.decode() == tokenizer.decode(expected, skip_special_tokens=True) + "\n"
    rates = RATES.fullmatch(result.stderr)
    assert rates is not None, result.stderr
    assert (int(rates[1]), int(rates[3] or 0)) == (len(prompt), len(expected) - 1)


def test_the_prompt_from_stdin(made: Models, run_json: RunJson) -> None:
    answers = [
        run_json("generate", made.trained, "-p", prompt, "-n", 3, input=text)
        for prompt, text in ((PROMPT, None), ("-", PROMPT), ("-", f"{PROMPT}\n"))
    ]
    assert answers[0]["prompt_ids"] == byte_tokenizer().encode(PROMPT)
    assert len({tuple(answer["token_ids"]) for answer in answers}) == 1
    assert len({tuple(answer["prompt_ids"]) for answer in answers}) == 1


def test_token_ids_need_no_tokenizer(made: Models, run: Run, run_json: RunJson) -> None:
    expected = continuation(made, [1, 15, 7], max_new_tokens=5)
    for prompt in ("1 15 7", "1,15, 7"):
        answer = run_json("generate", made.deployed, "-p", prompt, "-n", 5, "--token-ids")
        assert (answer["prompt_ids"], answer["token_ids"], answer["text"]) == ([1, 15, 7], expected, None)
        assert answer["prefill"]["tokens"] == 3
        assert answer["decode"]["tokens"] == 4
    text = run("generate", made.deployed, "-p", "1 15 7", "-n", 5, "--token-ids").stdout
    assert [int(token) for token in text.split()] == expected


def test_without_a_number_of_tokens_the_context_is_filled(made: Models, run_json: RunJson) -> None:
    answer = run_json("generate", made.deployed, "-p", "1 2 3", "--token-ids")
    assert len(answer["token_ids"]) == CONTEXT - 3


def test_sampling_is_by_its_seed(made: Models, run_json: RunJson) -> None:
    options = ("-p", PROMPT, "-n", 12, "--temperature", 1.5, "--top-k", 100, "--top-p", 0.99)
    first, again, other = (
        run_json("generate", made.trained, *options, "--seed", seed)["token_ids"] for seed in (1, 1, 2)
    )
    assert first == again != other
    generator = torch.Generator().manual_seed(1)
    sampling = {"do_sample": True, "temperature": 1.5, "top_k": 100, "top_p": 0.99, "generator": generator}
    tokenizer = byte_tokenizer()
    end = tokenizer.eos_token_id
    assert first == continuation(made, tokenizer.encode(PROMPT), max_new_tokens=12, eos_token_id=end, **sampling)
    greedy = run_json("generate", made.trained, "-p", PROMPT, "-n", 12, "--temperature", 0)["token_ids"]
    assert greedy == continuation(made, tokenizer.encode(PROMPT), max_new_tokens=12, eos_token_id=end)


def test_it_ends_after_a_stop_string(made: Models, run_json: RunJson) -> None:
    whole = run_json("generate", made.trained, "-p", PROMPT, "-n", 20, "--temperature", 3, "--seed", 5)
    decoded = [byte_tokenizer().decode(whole["token_ids"][:end]) for end in range(1, 21)]
    plain = next(text[-1] for text in decoded[4:] if text and text[-1] != "\ufffd")
    options = ("--temperature", 3, "--seed", 5, "--stop", "never", "--stop", plain)
    stopped = run_json("generate", made.trained, "-p", PROMPT, "-n", 20, *options)
    length = next(index for index, text in enumerate(decoded, 1) if plain in text)
    assert stopped["token_ids"] == whole["token_ids"][:length]
    assert plain in stopped["text"]


def test_chat_puts_the_prompt_into_the_template(made: Models, run_json: RunJson) -> None:
    answer = run_json("generate", made.trained, "-p", "hey", "-n", 1, "--chat")
    assert answer["prompt_ids"] == byte_tokenizer().encode("<hey>")


def test_kernel_and_threads_hold_for_the_command_alone(made: Models, run_json: RunJson) -> None:
    threads = torch.get_num_threads()
    answers = [
        run_json("generate", made.trained, "-p", PROMPT, "-n", 9, *options)["token_ids"]
        for options in ((), ("--kernel", "reference"), ("--kernel", "reference", "--threads", 1))
    ]
    assert answers[0] == answers[1] == answers[2]
    assert torch.get_num_threads() == threads
    assert "BITLAB_KERNEL" not in os.environ


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("trained", ["-p", "x" * CONTEXT], f"{CONTEXT} tokens long, expected at most {CONTEXT - 1}"),
        ("trained", ["-p", "x", "-n", "99"], "max_new_tokens is 99, expected 1 to"),
        ("trained", ["-p", ""], "without a token"),
        ("trained", ["-p", "x", "--kernel", "avx51"], "no kernel is named 'avx51'; there are "),
        ("trained", ["-p", "x", "--kernel", NOT_HERE], f"only kernel {NOT_HERE!r} was asked"),
        ("trained", ["-p", "x", "--device", "tpu"], "--device is 'tpu', expected cpu, cuda"),
        ("trained", ["-p", "x", "--device", "meta"], "--device is 'meta', expected cpu, cuda"),
        ("trained", ["-p", "x", "--temperature", "0", "--top-k", "3"], "leave out --top-k"),
        ("trained", ["-p", "x", "--seed", "99999999999999999999"], "Invalid value for '--seed'"),
        ("trained", ["-p", "x", "--token-ids"], "--prompt is 'x', expected token ids"),
        ("trained", ["-p", "999", "--token-ids"], "expected tokens of 0 to 257"),
        ("deployed", ["-p", "x"], "expected --tokenizer PATH, or --token-ids"),
        ("deployed", ["-p", "1", "--token-ids", "--stop", "x"], "token ids, not text: leave out --stop"),
        ("trained", ["-p", "1", "--token-ids", "--chat", "--tokenizer", "x"], "leave out --chat, --tokenizer"),
        ("mlp", ["-p", "1", "--token-ids"], "MODEL is a mlp, expected a language model"),
        ("nothing", ["-p", "x"], "no such file or directory"),
    ],
)
def test_what_cannot_be_continued(source: str, options: list[str], message: str, made: Models, run: Run) -> None:
    result = run("generate", getattr(made, source, "/no/such/model"), *options)
    assert result.exit_code == 2, result.stderr
    assert message in " ".join(result.stderr.replace("│", " ").split())
    assert result.stdout == ""


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu_is_told(made: Models, run: Run) -> None:
    result = run("generate", made.trained, "-p", "x", "--device", "cuda")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: --device is cuda, expected cpu: ")


def test_a_config_that_is_none(run: Run, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "transformer", "quant_config": {"weight_dtype": "int3"}}')
    result = run("generate", tmp_path, "-p", "1", "--token-ids")
    assert result.exit_code == 2
    start = (
        f"error: {tmp_path / 'config.json'} is not a BitLab config: deployed: Field required; config: Field required; "
    )
    assert result.stderr.startswith(f"{start}quant_config.weight_dtype: Input should be")
    assert result.stderr.count("\n") == 1


def test_a_tokenizer_without_a_chat_template(made: Models, run: Run, tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    result = run("generate", made.deployed, "-p", "x", "--chat", "--tokenizer", tmp_path)
    assert result.exit_code == 2
    assert result.stderr == "error: the tokenizer is without a chat template, expected one that has it, or no --chat\n"


def test_a_tokenizer_that_is_none(made: Models, run: Run, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    result = run("generate", made.deployed, "-p", "x", "--tokenizer", tmp_path)
    assert result.exit_code == 2
    assert "transformers cannot read its tokenizer" in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_folder_without_a_model_is_no_matter_of_the_tokenizer(run: Run, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("")
    result = run("generate", tmp_path, "-p", "x")
    assert result.exit_code == 2
    assert "has notes.txt, expected model.safetensors" in result.stderr
