from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import acts
import pytest
import tiny_gguf

from tenth.core.errors import InputError, NativeError
from tenth.core.jobs import ChildDied, Surroundings, run
from tenth.core.records import Runtime
from tenth.measurement.memory import ProofSettings, prove
from tenth.runtime import limits

linux = pytest.mark.skipif(sys.platform != "linux", reason="cgroups and namespaces are Linux's")
RUNTIME = Runtime(n_ctx=300, n_ubatch=32, threads=1)
ENOUGH = 200_000_000


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Large enough (38 MB) that its weights matter."""
    folder = tmp_path_factory.mktemp("seal")
    return tiny_gguf.write(
        folder / "model.gguf", hidden=512, ffn=1536, layers=3, heads=8, kv_heads=4, vocab=400
    )


def _grow(limit: int, size: int) -> dict[str, Any]:
    seen: dict[str, Any] = {}
    try:
        job, around = acts.GrowInCgroup(limit=limit, size=size), Surroundings(timeout=30)
        if not run(job, seen.update, around):
            pytest.skip("no memory cgroup can be made here (it takes root, or a delegated group)")
    except ChildDied as death:
        seen["signal"] = death.signal
    finally:
        if "group" in seen:
            limits.remove(Path(seen["group"]))
            assert not Path(seen["group"]).exists()
    return seen


@linux
def test_a_cgroup_ends_a_child_that_grows_over_the_limit() -> None:
    seen = _grow(30_000_000, 100_000_000)
    assert seen["signal"] == 9
    assert "held" not in seen
    assert seen["name"] in ("cgroup v1", "cgroup v2")


@linux
def test_a_cgroup_lets_a_child_below_the_limit_live() -> None:
    assert _grow(100_000_000, 30_000_000)["held"] == 30_000_000


@linux
def test_network_is_gone_where_it_says_so() -> None:
    left = run(acts.LeaveNetwork(), around=Surroundings(env={"OPENBLAS_NUM_THREADS": "1"}))
    if left.network == limits.ISOLATED:
        assert left.error is not None
    else:
        assert left.network.startswith("not isolated: ")


def test_resident_size_sees_an_allocation() -> None:
    assert 19_000_000 < run(acts.ResidentGrowth()) < 25_000_000


def test_a_proof_that_fits(model: Path) -> None:
    filled: list[float] = []
    proof = prove(model, RUNTIME, ENOUGH, 60_000_000, on_progress=filled.append)
    size = model.stat().st_size
    assert proof.fits
    assert size < proof.peak < size + 50_000_000
    assert filled == sorted(filled)
    assert filled[-1] > 0.9
    assert proof.interpreter > 5_000_000
    assert proof.parts["kv"] == 3 * 512 * 2 * 256 * 2  # layers, cells, K and V, width, f16
    assert proof.parts["peak"] == proof.peak
    assert abs(proof.error - (proof.peak / 60_000_000 - 1)) < 1e-9
    if sys.platform == "linux":
        assert proof.peak_file_backed >= size - 65536
        assert proof.peak_file_backed + proof.peak_anonymous >= proof.peak - 1_000_000
    groups = Path("/sys/fs/cgroup").glob(f"**/tenth-{os.getpid()}-*")
    assert not list(groups)


def test_over_the_budget_is_a_proof_not_an_error(model: Path) -> None:
    budget = 20_000_000
    proof = prove(model, RUNTIME, budget, budget, ProofSettings(timeout=60))
    assert not proof.fits
    assert proof.peak > budget


def test_over_the_budget_without_a_cgroup(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENTH_NO_CGROUP", "1")
    proof = prove(model, RUNTIME, 20_000_000, 20_000_000, ProofSettings(timeout=60))
    assert proof.limit == limits.WATCHED
    assert not proof.fits
    fitting = prove(model, RUNTIME, ENOUGH, 60_000_000)
    assert fitting.limit == limits.WATCHED
    assert fitting.fits


def test_bad_files_are_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no GGUF file"):
        prove(tmp_path / "absent.gguf", RUNTIME, ENOUGH, 1)
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + b"\0" * 100)
    with pytest.raises(NativeError, match="cannot load"):
        prove(broken, RUNTIME, ENOUGH, 1)
