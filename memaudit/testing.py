"""The conformance kit: does an adapter keep the promises that every figure of an audit rests on?

from memaudit.testing import check_adapter

def test_my_adapter() -> None:
    check_adapter(MyAdapter.example())
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from memaudit.adapters.base import Adapter, ModelOptions
from memaudit.adapters.registry import load_class
from memaudit.adapters.user import UserAdapter
from memaudit.engine.device import exact_arithmetic
from memaudit.errors import AdapterFault, MemauditError, UsageError
from memaudit.network.ablate import ablated, edited
from memaudit.network.hooks import hook_count
from memaudit.network.units import UnitSpace
from memaudit.text import clean

IMAGES = 3
# Kernels may sum in another order for another batch size: relative to the largest logit, float32.
TOLERANCE = 1e-3
# Two ways of cutting a unit agree when they differ by less than this share of what the cut does, rounding aside.
CUT_TOLERANCE, ROUNDING = 1e-2, 1e-5


def check_adapter(adapter: Adapter) -> list[str]:
    """Hold a loaded adapter against what memaudit assumes of one; random images of `preprocess.input_size` serve.

    Run it with a network whose weights are not all zero or constant: a silent unit proves nothing.

    Returns:
        The names of the checks, all of them passed.

    Raises:
        AdapterFault: the first promise that is not kept: what was found, and how to mend it.
    """
    if not isinstance(adapter, Adapter):
        raise AdapterFault(f"{clean(adapter)} is a {type(adapter).__name__}, not an Adapter", hint="return cls(...)")
    images = adapter.noise(IMAGES, torch.Generator().manual_seed(0)).to(adapter.device)
    before = _state(adapter)
    passed = []
    with exact_arithmetic():
        for name, check in CHECKS.items():
            _guard(name, check, adapter, images)
            passed.append(name)
    _check_restored(before, _state(adapter))
    return [*passed, "the network is left as it was found"]


def check_installed(name: str) -> list[str]:
    """`check_adapter` on the example that the installed adapter `name` makes of itself.

    Raises:
        UsageError: no such adapter, or it has no example.
        AdapterFault: its example cannot be made, or does not pass.
    """
    adapter = load_class(name)
    try:
        example = adapter.example()
    except NotImplementedError:
        raise UsageError(
            f"the adapter {clean(name)!r} has no example to test",
            hint="give its class a classmethod example() that returns a small loaded adapter; "
            "or call memaudit.testing.check_adapter(adapter) in its own tests",
        ) from None
    except MemauditError:
        raise
    except Exception as error:
        raise AdapterFault(
            f"{adapter.__name__}.example() raised {type(error).__name__}: {clean(error)}",
            hint="it must build and load a small network from nothing, without network access",
        ) from error
    return check_adapter(example)


def check_built(spec: str, input_size: tuple[int, ...] | None) -> list[str]:
    """`check_adapter` on the module that the user's `file.py:factory` builds, with the weights it starts from.

    Raises:
        UsageError, ModelRejected: the file or what it builds cannot be used.
        AdapterFault: a promise is not kept.
    """
    return check_adapter(UserAdapter.fresh(ModelOptions(user_file=spec, input_size=input_size)))


def _guard(name: str, check: Callable[[Adapter, Tensor], None], adapter: Adapter, images: Tensor) -> None:
    """Run one check; an exception of the adapter's own code becomes a fault with the check's name."""
    try:
        check(adapter, images)
    except MemauditError:
        raise
    except Exception as error:
        raise AdapterFault(
            f"while checking that {name}: {type(error).__name__}: {clean(error)}",
            hint=f"forward and sites must work on images of shape {tuple(images.shape)}",
        ) from error


# ---- the forward pass -------------------------------------------------------------------------------------------


def _check_eval(adapter: Adapter, _: Tensor) -> None:
    training = [name or type(m).__name__ for name, m in adapter.module.named_modules() if m.training]
    if training:
        raise AdapterFault(
            f"{len(training)} sub-modules are in training mode, first {clean(training[0])}",
            hint="call module.eval() last; a train() that is overridden must still reach every sub-module",
        )


def _check_frozen(adapter: Adapter, _: Tensor) -> None:
    trained = [name for name, p in adapter.module.named_parameters() if p.requires_grad]
    if trained:
        raise AdapterFault(
            f"{len(trained)} parameters require gradients, first {clean(trained[0])}",
            hint="call super().__init__(module, ...), or module.requires_grad_(False)",
        )


def _check_logits(adapter: Adapter, images: Tensor) -> None:
    logits = _logits(adapter, images)
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(images):
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise AdapterFault(
            f"forward returned {clean(found)} for images {tuple(images.shape)}, not ({len(images)}, classes)",
            hint="wrap the network in a module that returns the logits alone, one row per image",
        )
    if logits.shape[1] != adapter.num_classes:
        raise AdapterFault(
            f"forward returned {logits.shape[1]} logits, num_classes is {adapter.num_classes}",
            hint="leave num_classes to the base class",
        )
    if not logits.is_floating_point() or not bool(torch.isfinite(logits).all()):
        raise AdapterFault(
            f"the logits are {logits.dtype} or not all finite", hint="give the example finite float32 weights"
        )


def _check_buffers(adapter: Adapter, images: Tensor) -> None:
    before = {name: b.detach().clone() for name, b in adapter.module.named_buffers()}
    _logits(adapter, images)
    changed = [n for n, b in adapter.module.named_buffers() if n not in before or not torch.equal(b, before[n])]
    if changed:
        raise AdapterFault(
            f"forward changed {len(changed)} buffers, first {clean(changed[0])}",
            hint="statistics must not be updated in eval mode; keep caches out of buffers",
        )


def _check_repeatable(adapter: Adapter, images: Tensor) -> None:
    first, again = _logits(adapter, images), _logits(adapter, images)
    if not torch.equal(first, again):
        raise AdapterFault(
            f"two passes over the same images differ by up to {_gap(first, again):.2g}",
            hint="switch off dropout, noise and sampling in eval mode",
        )


def _check_alone(adapter: Adapter, images: Tensor) -> None:
    together = _logits(adapter, images)
    alone = torch.cat([_logits(adapter, image[None]) for image in images])
    if together.shape != alone.shape or _gap(together, alone) > TOLERANCE * float(together.abs().max()):
        raise AdapterFault(
            f"an image's logits depend on the other images of its batch, by up to {_gap(together, alone):.2g}",
            hint="normalise and pool per image; look for batch statistics and for shapes that assume a batch size",
        )


def _check_differentiable(adapter: Adapter, images: Tensor) -> None:
    if not images.is_floating_point():
        return  # token ids have no gradient
    given = images.clone().requires_grad_()
    with torch.enable_grad():
        logits = adapter.forward(given)
        gradient = torch.autograd.grad(logits.sum(), given, allow_unused=True)[0] if logits.requires_grad else None
    if gradient is None or not bool(torch.isfinite(gradient).all()) or not bool(gradient.any()):
        raise AdapterFault(
            "the logits have no gradient with respect to the images",
            hint="do not detach, convert to numpy or use torch.no_grad() in forward",
        )


# ---- the units --------------------------------------------------------------------------------------------------


def _check_sites(adapter: Adapter, images: Tensor) -> None:
    if not adapter.sites(images):
        raise AdapterFault(
            "sites found no layer whose units can be cut",
            hint="run convolutions and linear layers as modules of their own, or override sites",
        )


def _check_edits(adapter: Adapter, images: Tensor) -> None:
    intact = _logits(adapter, images)
    for space, unit in _units(adapter, images):
        masked = _masked(adapter, images, space, space.keep([[unit]])[0])
        with edited(adapter.module, space, [unit]):
            rewritten = _logits(adapter, images)
        if _gap(masked, rewritten) > _allowed(intact, masked):
            raise AdapterFault(
                f"masking unit {clean(space.unit(unit))} and zeroing its weights differ by up to "
                f"{_gap(masked, rewritten):.2g}",
                hint="check edits, axis and side of that site; sites of the base class are proved before they are used",
            )


def _check_rows(adapter: Adapter, images: Tensor) -> None:
    intact = _logits(adapter, images)
    for space, unit in _units(adapter, images):
        alone = _masked(adapter, images, space, space.keep([[unit]])[0])
        cuts = [[unit] if row == 1 else [] for row in range(len(images))]
        mixed = _masked(adapter, images, space, space.keep(cuts))
        expected = torch.stack([alone[i] if cut else intact[i] for i, cut in enumerate(cuts)])
        if _gap(mixed, expected) > _allowed(intact, alone):
            raise AdapterFault(
                f"cutting unit {clean(space.unit(unit))} for one image changes others, by up to "
                f"{_gap(mixed, expected):.2g}",
                hint="check batch_axis and batch_minor of that site",
            )


CHECKS: Mapping[str, Callable[[Adapter, Tensor], None]] = {
    "every sub-module is in eval mode": _check_eval,
    "no parameter requires a gradient": _check_frozen,
    "images of preprocess.input_size give logits (N, classes)": _check_logits,
    "forward leaves the buffers alone": _check_buffers,
    "forward is repeatable": _check_repeatable,
    "one image at a time equals a batch": _check_alone,
    "the logits are differentiable by the images": _check_differentiable,
    "there are units to cut": _check_sites,
    "in every layer a masked unit equals zeroed weights": _check_edits,
    "a unit cut for one image is not cut for others": _check_rows,
}


def _units(adapter: Adapter, images: Tensor) -> list[tuple[UnitSpace, int]]:
    """Per site, a space of it alone and the unit the logits depend on most: an inert one would prove nothing."""
    chosen = []
    for site in adapter.sites(images):
        space = UnitSpace((site,))
        keep = torch.ones(space.total, device=images.device, requires_grad=True)
        with torch.enable_grad(), ablated(adapter.module, space, keep):
            logits = adapter.forward(images)
            (effect,) = torch.autograd.grad(logits.square().sum(), keep)
        chosen.append((space, int(effect.abs().argmax())))
    return chosen


def _masked(adapter: Adapter, images: Tensor, space: UnitSpace, keep: Tensor) -> Tensor:
    with ablated(adapter.module, space, keep.to(images.device)):
        return _logits(adapter, images)


def _logits(adapter: Adapter, images: Tensor) -> Tensor:
    with torch.no_grad():
        return adapter.forward(images)


def _allowed(intact: Tensor, cut: Tensor) -> float:
    return CUT_TOLERANCE * _gap(intact, cut) + ROUNDING * float(intact.abs().max())


def _gap(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


# ---- what must be as before -------------------------------------------------------------------------------------


def _state(adapter: Adapter) -> dict[str, object]:
    module = adapter.module
    tensors = {n: t.detach().clone() for n, t in [*module.named_parameters(), *module.named_buffers()]}
    return {**tensors, "number of hooks": hook_count(module)}


def _check_restored(before: Mapping[str, object], after: Mapping[str, object]) -> None:
    for name in {**before, **after}:
        old, new = before.get(name), after.get(name)
        same = torch.equal(old, new) if isinstance(old, Tensor) and isinstance(new, Tensor) else old == new
        if not same:
            raise AdapterFault(
                f"the checks left the network changed: {clean(name)}",
                hint="sites and forward must undo whatever they change, hooks included, also when they raise",
            )
