"""What an artifact will do on the device: speed and energy of decoding, from its header and the profile.

The same figures as those of a plan (devices/speed.py, devices/energy.py), for any GGUF.
"""

from __future__ import annotations

from tenth.core.metrics import reading
from tenth.core.records import Interval, Reading, Runtime
from tenth.devices import energy, speed
from tenth.devices.profile import Device
from tenth.models.formats.inspect import Header


def expected(header: Header, runtime: Runtime, kv: int, device: Device) -> list[Reading]:
    """Readings device_decode (tokens/s) and device_joules (J/token) after half the context; kv: bytes of the
    whole KV cache. None where a type's speed is not known.
    """
    rates = speed.rates(device)
    read: dict[str, float] = {}
    looked_up = "token_embd.weight" if "output.weight" in header.tensors else ""
    for tensor in header.tensors.values():
        if tensor.name != looked_up:
            read[tensor.type] = read.get(tensor.type, 0.0) + tensor.bytes
    depth = runtime.n_ctx // 2
    for kind in (runtime.type_k.upper(), runtime.type_v.upper()):
        read[kind] = read.get(kind, 0.0) + kv / 2 * depth / runtime.n_ctx
    if read.keys() - rates.decode.keys():
        return []
    decode, known = speed.decode(rates, read), speed.decode_known(rates, read)
    joules = energy.per_token(device, decode, sum(read.values()), rates.sustained)
    how = "measured bandwidths of the device" if known else "bandwidths of its class of kernels"
    state = f"{device.name}, cpu, after {depth} tokens"
    return [
        _reading("device_decode", decode, f"{state}; {how}", known),
        _reading("device_joules", joules, f"{state}; the whole device while decoding", False),
    ]


def _reading(name: str, interval: Interval, conditions: str, known: bool) -> Reading:
    span = f"to be found between {interval.low:.3g} and {interval.high:.3g}; spread: half of that"
    return reading(
        name,
        interval.value,
        f"{conditions}; {span}",
        spread=(interval.high - interval.low) / 2,
        kind="predicted" if known else "estimated",
    )
