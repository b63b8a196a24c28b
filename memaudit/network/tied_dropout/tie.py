"""A layer of any network becomes tied and plain again, in place: its class changes, its name and tensors do not."""

from __future__ import annotations

from typing import Any, cast

from torch import nn

from memaudit.network.tied_dropout.layer import ExampleTiedDropout

CHILD = "tied_dropout"  # the name it has below the layer it is tied to, in checkpoints too


class Tied(nn.Module):
    """What a layer becomes when it is tied: the same class, whose output goes through its child `tied_dropout`."""

    tied_dropout: ExampleTiedDropout

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The layer's output, of its shape, through the dropout."""
        return self.tied_dropout(super().forward(*args, **kwargs))

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _empty_tied, (_plain_class(self),), self.__dict__


_KINDS: dict[type[nn.Module], type[nn.Module]] = {}  # one tied class per class, whatever happens to it


def _tied_class(kind: type[nn.Module]) -> type[nn.Module]:
    if kind not in _KINDS:
        _KINDS[kind] = type(f"Tied{kind.__name__}", (Tied, kind), {"__module__": kind.__module__})
    return _KINDS[kind]


def _plain_class(module: nn.Module) -> type[nn.Module]:
    return type(module).__mro__[2]


def _empty_tied(kind: type[nn.Module]) -> nn.Module:
    """An empty tied layer for pickle and deepcopy, which then fill it."""
    tied = _tied_class(kind)
    return tied.__new__(tied)


def tie(module: nn.Module, layer: ExampleTiedDropout) -> None:
    """Send the outputs of `module` through `layer` from now on."""
    parameter = next(module.parameters(), None)
    module.add_module(CHILD, layer if parameter is None else layer.to(parameter.device))
    layer.train(module.training)
    module.__class__ = _tied_class(type(module))


def untie(model: nn.Module, path: str) -> None:
    """Take out the dropout that `layers_of` names `path`."""
    module = model.get_submodule(path)
    if isinstance(module, Tied):
        del module.tied_dropout
        module.__class__ = cast("Any", _plain_class(module))
        return
    owner, _, name = path.rpartition(".")
    setattr(model.get_submodule(owner), name, nn.Identity())


def layers_of(model: nn.Module) -> dict[str, ExampleTiedDropout]:
    """Every example-tied dropout of the network by the path of the layer it is tied to, or its own if it is in none."""
    found = {}
    for path, module in model.named_modules():
        if isinstance(module, ExampleTiedDropout):
            owner, _, name = path.rpartition(".")
            tied = name == CHILD and isinstance(model.get_submodule(owner), Tied)
            found[owner if tied else path] = module
    return found
