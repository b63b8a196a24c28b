"""A user's own model: `--adapter file.py:factory`. The one place that runs code the user named, and says which."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from memaudit.adapters.base import Adapter, ModelOptions
from memaudit.adapters.preprocessing import resolve
from memaudit.checkpoints import Checkpoint
from memaudit.checkpoints.load import load_strict, with_prefix
from memaudit.checkpoints.source import opened
from memaudit.data.images.preprocess import Preprocess
from memaudit.errors import MemauditError, ModelRejected, UsageError
from memaudit.network.tied_dropout import layers_of, restore, split_rules
from memaudit.text import clean, closest

Transform = Callable[[Tensor], Tensor]
MAX_SOURCE = 4 << 20  # bytes of Python a person may have written


@dataclass(frozen=True)
class UserCode:
    """What ran, for the report: module name, file name (no folder) and the digest of the very bytes that ran."""

    module: str
    file: str
    sha256: str


class UserAdapter(Adapter):
    """A module from the user's factory, loaded strictly.

    Attributes:
        code: the file that was run.
        transform: maps `(N, C, H, W)` in [0, 1] to the network's input; `None`: mean and std of `preprocess` do.
    """

    name: ClassVar[str] = "user"

    def __init__(
        self,
        module: nn.Module,
        *,
        architecture: str,
        preprocess: Preprocess,
        code: UserCode,
        transform: Transform | None = None,
    ) -> None:
        super().__init__(
            module, architecture=architecture, preprocess=preprocess, reason=f"factory in {clean(code.file)}"
        )
        self.code = code
        self.transform = transform

    @classmethod
    def load(cls, checkpoint: Checkpoint, options: ModelOptions) -> UserAdapter:
        """Run `options.user_file` (`file.py:factory`) and load the checkpoint into what the factory returns.

        Raises:
            UsageError: no such file or factory, or an input size that nothing says.
            ModelRejected: the file or the factory raises (with the user's line), or the tensors do not fit.
        """
        path, factory, code = _factory(options)
        network, transform = _call(factory, options, path)
        plain, rules = split_rules(checkpoint.tensors)
        tensors = checkpoint.tensors if layers_of(network) else plain
        try:
            _materialise(network, tensors, checkpoint)
            load_strict(network, tensors, stripped_prefix=checkpoint.stripped_prefix, beside=checkpoint.beside)
            if tensors is plain:  # the factory builds the network without the dropout
                restore(network, rules)
        except Exception as error:  # a network may do anything where its state is asked for or set
            raise _blame(error, path) from error
        config = getattr(network, "pretrained_cfg", None) or getattr(network, "default_cfg", None)
        defaults = config if isinstance(config, dict) else {}
        if transform is not None:
            if options.mean is not None or options.std is not None:
                raise UsageError(
                    f"{clean(path.name)} returns a transform, and --mean or --std is given too",
                    hint="leave the flags out, or return the module alone",
                )
            defaults = {k: v for k, v in defaults.items() if k not in ("mean", "std")}
        preprocess = resolve(options, {} if transform else checkpoint.facts.preprocess, defaults, "adapter")
        preprocess = _as_arrays(preprocess, network, transform, options)
        try:
            return cls(
                network,
                architecture=_title(network, code),
                preprocess=preprocess,
                code=code,
                transform=transform,
            )
        except Exception as error:  # its eval() or requires_grad_() is its own
            raise _blame(error, path) from error

    @classmethod
    def fresh(cls, options: ModelOptions) -> UserAdapter:
        """What the factory builds, with the weights it starts from, to be tested.

        Raises:
            UsageError, ModelRejected: as `load`.
        """
        path, factory, _ = _factory(options)
        network, _ = _call(factory, options, path)
        return cls.load(Checkpoint(path, "safetensors", network.state_dict()), options)

    def inputs(self, batch: Tensor) -> tuple[Tensor, ...]:
        """What the module is called with for `batch` `(N, *input_size)`.

        That is the result of the user's transform, or the normalised batch where there is none.
        """
        return super().inputs(batch) if self.transform is None else (self.transform(batch),)


def _as_arrays(
    preprocess: Preprocess, network: nn.Module, transform: Transform | None, options: ModelOptions
) -> Preprocess:
    """`preprocess` for the arrays that the examples are: whole numbers are looked up where the network has a table."""
    preprocess = replace(preprocess, raw=transform is None and not preprocess.mean)
    arrays = options.arrays
    if arrays is None or arrays.shape != preprocess.input_size:
        return preprocess
    looked_up = arrays.whole and any(isinstance(m, nn.Embedding | nn.EmbeddingBag) for m in network.modules())
    return replace(preprocess, tokens=looked_up or arrays.masked, masked=arrays.masked)


def split_spec(spec: str) -> tuple[Path, str]:
    """`(file, factory name)` of `file.py:factory`.

    Raises:
        UsageError: it is not of that form.
    """
    file, _, factory = spec.rpartition(":")
    if not file.endswith(".py") or not factory.isidentifier():
        raise UsageError(f"{clean(spec)!r} is not of the form file.py:factory", hint="for example ./my_model.py:build")
    return Path(file), factory


def _factory(options: ModelOptions) -> tuple[Path, Callable[..., object], UserCode]:
    """The file and the function of it that `options.user_file` names; the file is run."""
    path, name = split_spec(options.user_file or "")
    module, code = run_file(path)
    factory = getattr(module, name, None)
    if not callable(factory):
        names = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        raise UsageError(
            f"no factory {clean(name)!r} in {clean(path.name)}{closest(name, names)}",
            hint=f"write it as --adapter {clean(path.name)}:NAME, a function without required arguments",
        )
    return path, factory, code


def run_file(path: Path) -> tuple[ModuleType, UserCode]:
    """Execute a Python file as a module of its own; neither its folder nor the current one joins the import path.

    Raises:
        UsageError: it cannot be read.
        ModelRejected: it raises; the message names the line.
    """
    try:
        with opened(path) as source:
            text = source.read(0, min(source.size, MAX_SOURCE + 1))
    except ModelRejected as error:
        raise UsageError(error.message, hint="name a Python file: --adapter ./my_model.py:build") from error
    if len(text) > MAX_SOURCE:
        raise UsageError(f"{clean(path.name)} is no Python source: over {MAX_SOURCE:,} bytes")
    digest = hashlib.sha256(text).hexdigest()
    name = f"memaudit_user_{digest[:12]}"
    spec = importlib.util.spec_from_loader(name, loader=None, origin=str(path))
    assert spec is not None  # noqa: S101 - spec_from_loader returns None only where the loader says so
    module = importlib.util.module_from_spec(spec)
    module.__file__ = str(path)
    sys.modules[name] = module  # dataclasses and pickle look their module up
    try:
        exec(compile(text, str(path), "exec"), vars(module))  # noqa: S102 - the user named this file
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise _blame(error, path) from error
    return module, UserCode(name, clean(path.name), digest)


def _call(factory: Callable[..., object], options: ModelOptions, path: Path) -> tuple[nn.Module, Transform | None]:
    """The factory's module and transform, checked for kind."""
    kwargs = dict(options.model_kwargs)
    try:
        if options.num_classes is not None and "num_classes" in inspect.signature(factory).parameters:
            kwargs.setdefault("num_classes", options.num_classes)
        result = factory(**kwargs)
    except (Exception, SystemExit) as error:
        raise _blame(error, path) from error
    network, transform = result if isinstance(result, tuple) and len(result) == 2 else (result, None)
    if not isinstance(network, nn.Module) or not (transform is None or callable(transform)):
        found = ", ".join(type(part).__name__ for part in (result if isinstance(result, tuple) else (result,)))
        raise ModelRejected(
            f"the factory in {clean(path.name)} returned {clean(found)}",
            hint="return an nn.Module, or a pair of an nn.Module and a function on batches (N, C, H, W) in [0, 1]",
        )
    try:
        state = network.state_dict()
    except Exception as error:  # its own state_dict
        raise _blame(error, path) from error
    if any(isinstance(m, torch.jit.ScriptModule) for m in network.modules()):
        raise ModelRejected(
            f"the factory in {clean(path.name)} returned TorchScript, whose layers cannot be followed",
            hint="return the Python module that torch.jit.script or torch.jit.trace was given",
        )
    if any(t.is_meta for t in state.values()):
        raise ModelRejected(f"the factory in {clean(path.name)} built the module on `meta`", hint="build it on the CPU")
    return network, transform


def _materialise(network: nn.Module, tensors: Mapping[str, Tensor], checkpoint: Checkpoint) -> None:
    """Give lazy parameters the shapes that the checkpoint has for them; their first forward does the rest."""
    state = network.state_dict(keep_vars=True)
    lazy = {n: t for n, t in state.items() if isinstance(t, UninitializedParameter | UninitializedBuffer)}
    if not lazy:
        return
    named = with_prefix(state, tensors, checkpoint.stripped_prefix, checkpoint.beside)
    for name, tensor in lazy.items():
        if name in named:
            tensor.materialize(named[name].shape)
    if missing := [n for n in lazy if n not in named]:
        raise ModelRejected(
            f"the network has lazy layers whose tensors are not in the checkpoint, first {clean(missing[0])!r}",
            hint="in the factory, run it once on an image before returning it: its names then say what differs",
        )


def _title(network: nn.Module, code: UserCode) -> str:
    """The network's class: bare if it is the file's own, else with its module."""
    kind = type(network)
    return clean(kind.__qualname__ if kind.__module__ == code.module else f"{kind.__module__}.{kind.__qualname__}")


def _blame(error: BaseException, path: Path) -> MemauditError:
    """The error as one line with the user's own line in it."""
    if isinstance(error, MemauditError):
        return error
    lines = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
    where = f" line {lines[-1].lineno} ({clean(lines[-1].line)})" if lines else ""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        where = f" line {error.lineno}"
    hint = "fix it and run again"
    if isinstance(error, ModuleNotFoundError):
        hint = "install that package, or put its folder on PYTHONPATH: the current directory is not searched"
    return ModelRejected(f"{clean(path.name)}{where} raised {type(error).__name__}: {clean(error)}", hint=hint)
