"""`python -m models.checkpoints.sources.pickle_child IN OUT`: read a pickle of weights, apart.

It is the child of `pickles.py`. `torch.load(weights_only=True)` builds nothing but tensors and
plain containers. Should it have a hole, this process has no network, may start nothing, and may
write to one folder only.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
# Beside what the interpreter and torch take already: a pickle takes up to three
# times its size.
_SPARE_BYTES = 512 << 20
_CPU_S = 300
# Where trainers keep the weights beside other things, averaged ones first.
_PLACES = (
    "ema_state_dict",
    "model_ema",
    "ema_model",
    "ema",
    "state_dict",
    "model_state_dict",
    "model",
    "unet",
    "net",
    "module",
)
_REFUSED = ("socket.", "subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.fork", "pty.")


class Refused(Exception):
    """The file is not read; the text says why."""


def confine(size_bytes: int, folder: Path) -> None:
    """Give up network, processes, other folders, and memory beyond a bound.

    Args:
        size_bytes: Of the file that is read.
        folder: Where the result is written.
    """
    _leave_network()
    used_bytes = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    most_bytes = used_bytes + _SPARE_BYTES + 4 * size_bytes
    resource.setrlimit(resource.RLIMIT_AS, (most_bytes, most_bytes))
    resource.setrlimit(resource.RLIMIT_CPU, (_CPU_S, _CPU_S))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    inside = str(folder.resolve())

    def refuse(event: str, args: tuple[Any, ...]) -> None:
        if event.startswith(_REFUSED):
            raise Refused(f"it tried {event}, which a file of weights has no need of")
        if event == "open" and _writes(args) and not os.path.realpath(args[0]).startswith(inside):
            raise Refused(f"it tried to write {args[0]}, which a file of weights has no need of")

    # cannot be taken off again
    sys.addaudithook(refuse)


def _leave_network() -> None:
    """Enter a network of its own, which has no way out, where the system lets us."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET):
        libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET)


def _writes(args: tuple[Any, ...]) -> bool:
    path, mode, flags = args
    if not isinstance(path, str | bytes) or path in ("/dev/null", b"/dev/null"):
        return False
    asks = any(letter in (mode or "") for letter in "wxa+")
    return asks or bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


def find_weights(content: object) -> tuple[dict[str, Tensor], str, list[str]]:
    """Find the weights among what a trainer saved.

    DDIM's trainer saves a list: the network, the optimizer, two counters, and last the averages
    where it has them (Song et al., 2021; `runners/diffusion.py`).

    Returns:
        The tensors by name, the path of keys to them, and the keys beside that path.

    Raises:
        Refused: There are none.
    """
    place: list[str] = []
    beside: list[str] = []
    if isinstance(content, list | tuple):
        states = [index for index, held in enumerate(content) if _is_state(held)]
        if states:
            beside = [str(index) for index in range(len(content)) if index != states[-1]]
            place.append(f"item {states[-1]} of {len(content)}")
            content = content[states[-1]]
    while isinstance(content, Mapping):
        chosen = next((p for p in _PLACES if isinstance(content.get(p), Mapping)), None)
        if chosen is None:
            break
        beside += [str(key) for key in content if key != chosen]
        place.append(chosen)
        content = content[chosen]
    if not isinstance(content, Mapping):
        raise Refused(f"it holds a {type(content).__name__}, not the weights of a network")
    tensors = {str(k): v for k, v in content.items() if isinstance(v, Tensor)}
    if not tensors:
        keys = ", ".join(list(map(str, content))[:5]) or "nothing"
        raise Refused(f"it holds no weights of a network, but {keys}")
    beside += [str(key) for key, value in content.items() if not isinstance(value, Tensor)]
    return tensors, ".".join(place), beside


def _is_state(held: object) -> bool:
    """Tell whether these are the weights of a network, and nothing else."""
    return (
        isinstance(held, Mapping)
        and len(held) > 0
        and all(isinstance(value, Tensor) for value in held.values())
    )


def check_sizes(tensors: Mapping[str, Tensor], size_bytes: int) -> None:
    """Refuse tensors that claim more than the file can hold.

    Raises:
        Refused: They do.
    """
    claimed = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if claimed > 2 * size_bytes + 4096:
        raise Refused(f"its tensors claim {claimed} bytes, and the file has {size_bytes}")


def convert(path: Path, out: Path) -> dict[str, Any]:
    """Read a pickle, and write its weights as safetensors.

    Returns:
        Where the weights were, and what was left out.

    Raises:
        Refused: It holds no weights, or claims too much.
        Exception: What torch raises for a pickle that it does not read.
    """
    size_bytes = path.stat().st_size
    content = torch.load(path, map_location="cpu", weights_only=True)
    tensors, place, beside = find_weights(content)
    check_sizes(tensors, size_bytes)
    # a copy each, since safetensors refuses tensors that share memory
    save_file({name: t.detach().clone().contiguous() for name, t in tensors.items()}, out)
    return {"place": place, "beside": beside}


def main(given: str, out: str) -> int:
    """Convert; print the result or the fault as one line of JSON."""
    path = Path(given)
    confine(path.stat().st_size, Path(out).parent)
    try:
        answer = convert(path, Path(out))
    except Refused as error:
        answer = {"refused": str(error)}
    except MemoryError:
        answer = {"memory": True}
    # whatever torch raises for what a file may hold
    except Exception as error:
        answer = {"fault": f"{type(error).__name__}: {error}"}
    sys.stdout.write(json.dumps(answer) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
