"""Weights from files: safetensors and torch's, with the names of other code bases."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from kdstudy.errors import KDStudyError, check_number
from kdstudy.nets.tapped import Tapped

WRAPPERS = ("model", "state_dict", "net")
PREFIXES = ("module.", "student.")  # of nn.DataParallel; of mdistiller's distillers

# Patterns of names in RepDistiller and mdistiller, which agree, and ours; the first that fits a name's start counts.
RENAMINGS: dict[str, tuple[tuple[str, str], ...]] = {
    "resnet": (
        (r"conv1\.", "stem.0."),
        (r"bn1\.", "stem.1."),
        (r"layer(\d)\.(\d+)\.conv1\.", r"stage\1.\2.body.0."),
        (r"layer(\d)\.(\d+)\.bn1\.", r"stage\1.\2.body.1."),
        (r"layer(\d)\.(\d+)\.conv2\.", r"stage\1.\2.body.3."),
        (r"layer(\d)\.(\d+)\.bn2\.", r"stage\1.\2.body.4."),
        (r"layer(\d)\.(\d+)\.conv3\.", r"stage\1.\2.body.6."),
        (r"layer(\d)\.(\d+)\.bn3\.", r"stage\1.\2.body.7."),
        (r"layer(\d)\.(\d+)\.(?:downsample|shortcut)\.", r"stage\1.\2.shortcut."),
        (r"(?:fc|linear)\.", "logits."),
    ),
    "wrn": (
        (r"conv1\.", "stem."),
        (r"block(\d)\.layer\.(\d+)\.bn1\.", r"stage\1.\2.activate.0."),
        (r"block(\d)\.layer\.(\d+)\.conv1\.", r"stage\1.\2.body.0."),
        (r"block(\d)\.layer\.(\d+)\.bn2\.", r"stage\1.\2.body.1."),
        (r"block(\d)\.layer\.(\d+)\.conv2\.", r"stage\1.\2.body.3."),
        (r"block(\d)\.layer\.(\d+)\.convShortcut\.", r"stage\1.\2.shortcut."),
        (r"bn1\.", "pool.0."),
        (r"fc\.", "logits."),
    ),
    "vgg": (
        (r"block0\.", "stem."),
        (r"block(\d)\.", r"stage\1.1."),
        (r"classifier\.", "logits."),
    ),
    "mobilenet_v2": (
        (r"conv1\.", "stem."),
        (r"blocks\.([01])\.(\d+)\.conv\.", r"stage1.\1.\2.body."),
        (r"blocks\.2\.(\d+)\.conv\.", r"stage2.0.\1.body."),
        (r"blocks\.3\.(\d+)\.conv\.", r"stage3.0.\1.body."),
        (r"blocks\.4\.(\d+)\.conv\.", r"stage3.1.\1.body."),
        (r"blocks\.5\.(\d+)\.conv\.", r"stage4.0.\1.body."),
        (r"blocks\.6\.(\d+)\.conv\.", r"stage4.1.\1.body."),
        (r"conv2\.", "pool."),
        (r"classifier\.0\.", "logits."),
    ),
    "shufflenet_v1": (
        (r"conv1\.", "stem.0."),
        (r"bn1\.", "stem.1."),
        (r"layer(\d)\.(\d+)\.conv1\.", r"stage\1.\2.body.0."),
        (r"layer(\d)\.(\d+)\.bn1\.", r"stage\1.\2.body.1."),
        (r"layer(\d)\.(\d+)\.conv2\.", r"stage\1.\2.body.4."),
        (r"layer(\d)\.(\d+)\.bn2\.", r"stage\1.\2.body.5."),
        (r"layer(\d)\.(\d+)\.conv3\.", r"stage\1.\2.body.7."),
        (r"layer(\d)\.(\d+)\.bn3\.", r"stage\1.\2.body.8."),
        (r"linear\.", "logits."),
    ),
    "shufflenet_v2": (
        (r"conv1\.", "stem.0."),
        (r"bn1\.", "stem.1."),
        (r"layer(\d)\.0\.conv1\.", r"stage\1.0.left.0."),
        (r"layer(\d)\.0\.bn1\.", r"stage\1.0.left.1."),
        (r"layer(\d)\.0\.conv2\.", r"stage\1.0.left.2."),
        (r"layer(\d)\.0\.bn2\.", r"stage\1.0.left.3."),
        (r"layer(\d)\.0\.conv3\.", r"stage\1.0.right.0."),
        (r"layer(\d)\.0\.bn3\.", r"stage\1.0.right.1."),
        (r"layer(\d)\.0\.conv4\.", r"stage\1.0.right.3."),
        (r"layer(\d)\.0\.bn4\.", r"stage\1.0.right.4."),
        (r"layer(\d)\.0\.conv5\.", r"stage\1.0.right.5."),
        (r"layer(\d)\.0\.bn5\.", r"stage\1.0.right.6."),
        (r"layer(\d)\.(\d+)\.conv1\.", r"stage\1.\2.right.0."),
        (r"layer(\d)\.(\d+)\.bn1\.", r"stage\1.\2.right.1."),
        (r"layer(\d)\.(\d+)\.conv2\.", r"stage\1.\2.right.3."),
        (r"layer(\d)\.(\d+)\.bn2\.", r"stage\1.\2.right.4."),
        (r"layer(\d)\.(\d+)\.conv3\.", r"stage\1.\2.right.5."),
        (r"layer(\d)\.(\d+)\.bn3\.", r"stage\1.\2.right.6."),
        (r"conv2\.", "pool.0."),
        (r"bn2\.", "pool.1."),
        (r"linear\.", "logits."),
    ),
}


def read_weights(file: str | Path) -> dict[str, Tensor]:
    """Return the tensors of a file of weights by name, on the CPU; nothing in it is ever executed.

    A checkpoint is unwrapped: what lies under "model", "state_dict" or "net" is taken, whatever else it holds
    is left, and a prefix that all names share ("module.", "student.") is dropped.

    Args:
        file: a ``.safetensors`` file, or what ``torch.save`` wrote of a state dict.

    Returns:
        The tensors by name.

    Raises:
        KDStudyError: if there is no such file, or it holds anything but tensors, numbers, texts, lists, dicts
            and an ``argparse.Namespace``, or no tensors.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save({"epoch": 3, "model": {"module.fc.bias": torch.ones(5)}}, f"{folder}/a.pth")
        ...     read_weights(f"{folder}/a.pth")
        {'fc.bias': tensor([1., 1., 1., 1., 1.])}
    """
    path = Path(file)
    if not path.is_file():
        raise KDStudyError(f"{path}: no such file of weights")
    held = _safetensors(path) if path.suffix == ".safetensors" else _torch(path)
    inside = next((held[key] for key in WRAPPERS if isinstance(held, Mapping) and _is_mapping(held.get(key))), held)
    tensors = {k: v for k, v in inside.items() if isinstance(v, Tensor)} if isinstance(inside, Mapping) else {}
    if not tensors:
        raise KDStudyError(f"{path}: holds no tensors by name")
    for prefix in PREFIXES:
        if all(str(name).startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def _is_mapping(thing: object) -> bool:
    return isinstance(thing, Mapping)


def _safetensors(path: Path) -> object:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise KDStudyError(f"{path}: not a safetensors file ({error})") from None


def _torch(path: Path) -> object:
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        found = re.search(r"(?:GLOBAL|type|class|global|function) ([\w.]*\w\.\w+)", str(error))
        what = f" ({found[1]})" if found else ""
        raise KDStudyError(f"{path}: holds more than weights{what}, or is none of torch's files; refused") from None
    except Exception:  # whatever bytes do to a reader of files
        raise KDStudyError(f"{path}: not a file that torch.save wrote") from None


def load_weights(net: nn.Module, tensors: Mapping[str, Tensor], source: str = "") -> None:
    """Load tensors into a network, all of them or none.

    Their names are the network's own, or those of RepDistiller's and mdistiller's networks for small images.

    Args:
        net: the network; unchanged if anything does not fit.
        tensors: by name, as `read_weights` returns them.
        source: where they are from, for errors.

    Raises:
        KDStudyError: if names are missing or left over, or a shape differs.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> load_weights(layer, {"weight": torch.ones(1, 2), "bias": torch.zeros(1)})
        >>> layer(torch.ones(1, 2)).item()
        2.0
    """
    source = source or "the file"
    target = net.net if isinstance(net, Tapped) and not any(name.startswith("net.") for name in tensors) else net
    own = target.state_dict()
    candidates = [{name: name for name in tensors}, *({_renamed(n, f): n for n in tensors} for f in RENAMINGS)]
    theirs = max(candidates, key=lambda names: len(names.keys() & own.keys()))  # our names -> those in the file
    missing = [n for n in own if n not in theirs and not n.endswith("num_batches_tracked")]
    left = [name for ours, name in theirs.items() if ours not in own]
    left += sorted(set(tensors) - set(theirs.values()))
    if missing or left:
        raise KDStudyError(_names(source, missing, left))
    _check_shapes(source, {theirs[n]: (tensors[theirs[n]], own[n]) for n in theirs})
    target.load_state_dict({**own, **{ours: tensors[name] for ours, name in theirs.items()}})


def blended(start: Mapping[str, Tensor], end: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """Return the weights at a place on the straight line between those of two networks.

    θ = (1 − λ) θ_start + λ θ_end

    Args:
        start: by name, as a network's `state_dict` returns them.
        end: of the same names and shapes.
        share: λ, in [0, 1].

    Returns:
        By name the weights, and the averages of batch norm, which are on the line too; of what is not floating-point,
        such as its counts of batches, that of the end.

    Raises:
        KDStudyError: if the share is out of its range, or names or shapes differ, naming the first.

    Example:
        >>> blended({"weight": torch.tensor([0.0, 2.0])}, {"weight": torch.tensor([4.0, 2.0])}, 0.25)
        {'weight': tensor([1., 2.])}
    """
    check_number("share", share, low=0, high=1)
    for name in sorted(start.keys() | end.keys()):
        shapes = [str(tuple(each[name].shape)) if name in each else "missing" for each in (start, end)]
        if shapes[0] != shapes[1]:
            raise KDStudyError(f"networks of two forms: {name} is {shapes[0]} in one and {shapes[1]} in the other")
    return {
        name: torch.lerp(start[name].to(value), value, share) if value.is_floating_point() else value.clone()
        for name, value in end.items()
    }


def _renamed(name: str, family: str) -> str:
    for pattern, ours in RENAMINGS[family]:
        found = re.match(pattern, name)
        if found:
            return found.expand(ours) + name[found.end() :]
    return name


def _names(source: str, missing: list[str], left: list[str]) -> str:
    """Return what to say of names that do not meet."""
    said = [
        f"{len(names)} {what}, first {names[0]!r}"
        for what, names in ((f"missing in {source}", missing), ("not in the network", left))
        if names
    ]
    return f"{source}: weights of another network: {'; '.join(said)}"


def _check_shapes(source: str, pairs: Mapping[str, tuple[Tensor, Tensor]]) -> None:
    wrong = [name for name, (tensor, own) in pairs.items() if tensor.shape != own.shape]
    if wrong:
        name = wrong[0]
        tensor, own = pairs[name]
        more = f"; {len(wrong) - 1} more differ" if len(wrong) > 1 else ""
        raise KDStudyError(f"{name} is {tuple(tensor.shape)} in {source}, {tuple(own.shape)} in the network{more}")
