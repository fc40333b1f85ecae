"""Fits that need a smaller model, as a person asks for them: real processes, tiny random models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from commands import Shell
from test_fit import prose
from transformers import AutoModelForCausalLM

from tenth.core.records import Plan, Runtime, Scorecard
from tenth.runtime.llama import Session

CONTEXT, WIDTH, GROUPS, BLOCKS = 256, 1536, 2, 3


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """A home with a model whose matrices are most of what it needs in half precision, and two texts."""
    folder = tmp_path_factory.mktemp("smaller")
    for name, width in (("model", WIDTH), ("sibling", 64)):
        tiny.make_model(
            folder / name,
            "llama",
            "tied",
            max_position_embeddings=512,
            hidden_size=256,
            intermediate_size=width,
            num_hidden_layers=BLOCKS if name == "model" else 1,
        )
    (folder / "text.txt").write_text(prose(3000, 0))
    (folder / "judged.txt").write_text(prose(700, 1))
    return Shell(folder)


def words(shell: Shell, budget: int, *more: object) -> list[object]:
    return [
        "fit",
        *more,
        "--memory",
        f"{budget}B",
        "--context",
        CONTEXT,
        "--windows",
        8,
        "--threads",
        1,
        "--text",
        shell.home / "text.txt",
        "--eval-text",
        shell.home / "judged.txt",
        "--effort",
        "fast",
        "--work",
        shell.home / "work",
        "--baselines",
        0,
        "--json",
    ]


@pytest.fixture(scope="module")
def least(shell: Shell) -> int:
    """The smallest budget in half precision with every part in its place."""
    asked = words(shell, 1_000_000, "model", "--no-quantise", "--no-structure", "-o", "none")
    refused = shell.run(*asked)
    assert refused.returncode == 2, refused.stderr
    total: int = json.loads(refused.stdout)["error"]["smallest"]["total"]
    return total


def bundle(out: Path) -> tuple[Plan, Scorecard]:
    return (
        Plan.model_validate_json((out / "plan.json").read_bytes()),
        Scorecard.model_validate_json((out / "scorecard.json").read_bytes()),
    )


def test_half_precision_below_what_the_whole_model_needs(shell: Shell, least: int) -> None:
    out = shell.home / "half"
    asked = words(
        shell,
        least - 3_000_000,
        "model",
        "--no-quantise",
        "--format",
        "hf",
        "--dtype",
        "float32",
        "--heal",
        "16ktok",
        "-o",
        out,
    )
    done = shell.run(*asked)
    assert done.returncode == 0, done.stderr
    plan, card = bundle(out)
    assert card.proof.fits
    assert plan.structure is not None
    assert plan.structure.shape is not None
    sizes = {
        (plan.structure.shape.ffn[i], plan.structure.shape.kv_heads[i]) for i in plan.structure.shape.kept
    }
    assert len(sizes) == 1  # a Hugging Face folder
    assert plan.structure.parameters - plan.parameters > 1_200_000
    assert plan.structure.healed.startswith("16ktok: KL ")
    assert set(plan.types.values()) == {"F16"}
    assert "What was removed" in (out / "report.html").read_text()

    tokens = np.arange(3, 60, dtype=np.int32)
    model = AutoModelForCausalLM.from_pretrained(out / "hf", dtype=torch.float32)
    assert sum(p.numel() for p in model.parameters()) == plan.parameters
    with torch.no_grad():
        expected = model(torch.from_numpy(tokens.astype(np.int64))[None]).logits[0].log_softmax(-1).numpy()
    with Session.open(str(out / "model.gguf"), Runtime(n_ctx=64, n_ubatch=64, threads=1)) as session:
        stored = torch.from_numpy(session.decode(tokens, 0)).log_softmax(-1).numpy()
    assert np.abs(stored - expected).max() < 0.05  # half precision against float32


def test_a_plan_of_bits_alone_says_that_a_fit_can_do_more(shell: Shell) -> None:
    def refused(budget: int) -> dict[str, Any]:
        done = shell.run("plan", "model", "--memory", f"{budget}B", "--context", CONTEXT, "--json")
        assert done.returncode == 2, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)["error"]
        return found

    hopeless = refused(1_000_000)
    assert "removes parts" not in hopeless["message"]
    assert refused(hopeless["smallest"]["total"] - 50_000)["message"].endswith(
        "or tenth fit, which removes parts of it"
    )


def test_of_several_models_the_best_is_kept_with_fewer_tokens(shell: Shell, least: int) -> None:
    out = shell.home / "family"
    more = ("--no-quantise", "--no-structure", "--vocabulary", 300)
    done = shell.run(*words(shell, least + 2_000_000, "sibling", "model", *more, "-o", out))
    assert done.returncode == 0, done.stderr
    plan, card = bundle(out)
    bits = [candidate.value("bits_per_byte") for candidate in card.candidates]
    assert len(bits) == 2
    assert bits[0] == min(bits)
    assert plan.model in ("model", "sibling")
    assert plan.structure is not None
    assert plan.structure.vocabulary == (tiny.VOCABULARY, 300)
    assert any("only bits per byte compares" in note for note in card.notes)


def test_a_file_with_fewer_tokens_is_held_against_the_given_model(shell: Shell) -> None:
    out = shell.home / "fewer"
    asked = words(shell, 30_000_000, "sibling", "--no-structure", "--vocabulary", 300, "-o", out)
    asked[asked.index("--baselines") + 1] = 1
    asked.remove("--json")
    done = shell.run(*asked)
    assert done.returncode == 0, done.stderr
    _, card = bundle(out)
    assert card.vocabulary == (tiny.VOCABULARY, 300)
    ours, whole, *same = card.candidates
    assert [reading.name for reading in card.original] == ["bits_per_byte"]
    assert whole.all_tokens
    assert whole.fits
    assert whole.name.endswith(", all tokens")
    assert {each.all_tokens for each in (ours, *same)} == {False}
    assert len(same) == 2  # a recipe and Q4_0
    original = card.original[0].value
    rise = ours.value("bits_per_byte") / original - 1
    kl = ours.reading("kl")
    assert kl is not None
    assert "of the model with 300 tokens, not of the one that was given" in kl.conditions
    # Nothing of the given model's file but rounding is lost.
    assert whole.value("bits_per_byte") == pytest.approx(original, rel=0.02)
    verdict = " ".join((done.stderr + done.stdout).split())
    assert f"{abs(rise):.1%} {'more' if rise >= 0 else 'less'} than the original's" in verdict
    assert "With 300 of 384 tokens it takes" in verdict
    assert "KL divergence" not in verdict


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--heal", "lots"], "give a time or tokens"),
        (["--vocabulary", "many"], "no number of tokens"),
        (["--languages", "xx"], "xx"),
        (["--vocabulary", "10"], "too small"),
    ],
)
def test_what_cannot_be_asked(shell: Shell, least: int, more: list[str], message: str) -> None:
    refused = shell.run(*words(shell, least, "model", *more, "-o", shell.home / "refused"))
    assert refused.returncode == 2
    assert message in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not (shell.home / "refused").exists()
