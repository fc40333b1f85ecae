"""The steps of bench/arm64.sh.

kit PROBE FOLDER              what tenth push would send to a device that says PROBE of its Python
logits BUNDLE OUT.npz N       logits of N windows of the bundled text, as the plan runs the file
compare HERE.npz ARM.npz      one JSON line: KL divergence from here to there, nats per token
"""

from __future__ import annotations

import json
import platform
import shutil
import sys
import time
from pathlib import Path

import numpy as np

LENGTH = 256  # tokens of a window


def kit(probe: str, folder: str) -> None:
    from tenth.remote import package as kits

    shutil.rmtree(folder, ignore_errors=True)
    for name, path in kits.files(kits.platform("the arm64 root", "Linux", "aarch64", probe)).items():
        place = Path(folder) / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(path)


def logits(model: str, out: str, windows: str, batch: str = "") -> None:
    from tenth.core.records import Runtime
    from tenth.models import text
    from tenth.runtime import llama
    from tenth.runtime.bundle import open_bundle

    gguf, runtime = Path(model), Runtime(n_ctx=LENGTH, n_ubatch=64)
    if gguf.is_dir():
        opened = open_bundle(gguf)
        gguf, runtime = opened.gguf, opened.plan.runtime
    n_batch, began = int(batch or runtime.n_ubatch), time.monotonic()
    found = []
    runtime = runtime.model_copy(update={"n_ctx": LENGTH, "n_ubatch": n_batch, "threads": 0})
    with llama.Session.open(gguf, runtime) as session:
        ids = session.tokenize(text.bundled()[:100_000])[: int(windows) * LENGTH].reshape(-1, LENGTH)
        for window in ids:
            session.clear()
            found.append(session.decode(window, 0))
    np.savez(
        out,
        ids=ids,
        logits=np.array(found),
        runtime=llama.build(),
        machine=platform.machine(),
        types=json.dumps(_types(gguf)),
        kv=f"{runtime.type_k}/{runtime.type_v}",
        seconds=time.monotonic() - began,
    )


def _types(gguf: Path) -> list[str]:
    from gguf import GGUFReader

    return sorted({tensor.tensor_type.name for tensor in GGUFReader(gguf).tensors if len(tensor.shape) > 1})


def compare(here: str, again: str, there: str) -> None:
    from tenth.core.divergence import divergence, log_softmax

    with np.load(here) as one, np.load(again) as own, np.load(there) as other:
        if not np.array_equal(one["ids"], other["ids"]):
            sys.exit("the two machines split the text into different tokens")
        p, p2, q = (
            log_softmax(side["logits"].reshape(-1, side["logits"].shape[-1])) for side in (one, own, other)
        )
        kl = divergence(p, q)
        line = {
            "bench": "arm64",
            "tokens": len(kl),
            "kl": float(kl.mean()),
            "kl_p99": float(np.percentile(kl, 99)),
            "kl_max": float(kl.max()),
            "top1": float((p.argmax(1) == q.argmax(1)).mean()),
            "kl_own": float(divergence(p, p2).mean()),
            "types": json.loads(str(other["types"])),
            "kv": str(other["kv"]),
            "here": f"{one['machine']}: {one['runtime']}, {float(one['seconds']):.1f} s",
            "there": f"{other['machine']}: {other['runtime']}, {float(other['seconds']):.1f} s under qemu",
        }
    print(json.dumps(line))
    if not line["kl"] < 1e-3:
        sys.exit(f"KL {line['kl']:.3g} nats per token is not below 1e-3; here alone {line['kl_own']:.3g}")


if __name__ == "__main__":
    step, *words = sys.argv[1:]
    if step == "kit":
        kit(*words)
    elif step == "logits":
        logits(*words)
    else:
        compare(*words)
