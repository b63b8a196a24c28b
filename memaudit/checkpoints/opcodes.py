"""A look at a pickle's instructions before anything executes them: only what weights need is let through.

The list is narrower than the one of torch's own `weights_only` loader, which runs afterwards, in another process.
"""

from __future__ import annotations

import io
import pickletools
import re

from memaudit.checkpoints.recognise import FULL
from memaudit.checkpoints.sniff import SAVE_AGAIN
from memaudit.errors import ModelRejected
from memaudit.text import clean

# A tensor takes about 40 instructions: 50,000 tensors, which is a large model with its optimizer and average.
MAX_OPCODES = 2_000_000
MAX_STRING = 1 << 20
PICKLES = 5  # at the start of a file of torch before 1.6

_OPCODES = (
    "APPEND APPENDS BINFLOAT BINGET BININT BININT1 BININT2 BINPERSID BINPUT BINUNICODE BUILD EMPTY_DICT EMPTY_LIST "
    "EMPTY_SET EMPTY_TUPLE GLOBAL LONG1 LONG_BINGET LONG_BINPUT MARK NEWFALSE NEWOBJ NEWTRUE NONE PROTO REDUCE SETITEM "
    "SETITEMS SHORT_BINSTRING STOP TUPLE TUPLE1 TUPLE2 TUPLE3"
)
OPCODES = frozenset(_OPCODES.split())
_STORAGES = "Float Half BFloat16 Double Long Int Short Char Byte Bool ComplexFloat"
_DTYPES = "float32 float16 bfloat16 float64 int64 int32 int16 int8 uint8 bool"
# Bookkeeping beside the weights (scores, class counts, paths): read as empty placeholders, see `child.Inert`.
INERT = frozenset(
    {
        "numpy.core.multiarray.scalar",
        "numpy._core.multiarray.scalar",
        "numpy.core.multiarray._reconstruct",
        "numpy._core.multiarray._reconstruct",
        "numpy.ndarray",
        "numpy.dtype",
        "pathlib.PosixPath",
        "pathlib.WindowsPath",
        "pathlib._local.PosixPath",
        "pathlib._local.WindowsPath",
    }
)
GLOBALS = INERT | {
    "collections.OrderedDict",
    "collections.Counter",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_parameter",
    "torch._tensor._rebuild_from_type_v2",  # a tensor with attributes: FSDP marks those that it gathers
    "torch.Tensor",
    "torch.Size",
    "torch.device",
    "argparse.Namespace",
    "_codecs.encode",
    *(f"torch.{n}Storage" for n in _STORAGES.split()),
    *(f"torch.{n}" for n in _DTYPES.split()),
}
# Whose classes whole networks, their settings and their training are made of: see `looks_honest`.
HONEST = (
    *("torch.nn.", "torch.optim.", "timm.models.", "timm.layers.", "torchvision.models.", "torchvision.ops."),
    *("torchvision.transforms.", "transformers.models.", "transformers.training_args", "ultralytics.nn.modules."),
    *("ultralytics.nn.tasks", "monai.networks.", "segmentation_models_pytorch.", "sklearn.preprocessing."),
    *("pytorch_lightning.utilities.", "lightning.pytorch.utilities.", "lightning_fabric.utilities.", "omegaconf."),
)
_ACTIVATIONS = "relu relu6 gelu silu elu selu celu leaky_relu hardtanh hardswish hardsigmoid mish softplus tanh sigmoid"
# And what their pickles call beside classes.
HONEST_NAMES = frozenset(
    {
        *("functools.partial", "collections.defaultdict", "collections.deque", "copyreg._reconstructor"),
        *("copy_reg._reconstructor", "typing.Any", "datetime.datetime", "torch._C._nn.gelu", "types.SimpleNamespace"),
        *(f"torch.nn.functional.{name}" for name in _ACTIVATIONS.split()),
    }
)
_CLASS = re.compile(r"[A-Z][A-Za-z0-9_]*")
_BUILT_IN = ("set", "frozenset", "dict", "list", "tuple", "int", "float", "bool", "str", "slice", "range", "object")
BUILT_IN = frozenset(f"{module}.{name}" for module in ("__builtin__", "builtins") for name in _BUILT_IN)
_QUANTISED = ("torch._utils._rebuild_qtensor", "torch.ao.", "torch.QInt", "torch.QUInt", "torch.per_", "torchao.")
_SHARDED = ("torch.distributed.", "torch._utils._rebuild_wrapper_subclass")  # the latter: of a DTensor
# Toolkits that save objects of their own beside the weights, and how to save the weights without them.
_ALONE = 'torch.save({"state_dict": model.state_dict()}, "model.pth") where it was trained'
TOOLKITS = {
    "fastcore.": "save it without the optimizer: learn.save(name, with_opt=False)",
    "fastai.": f"save the weights, not the learner: {_ALONE.replace('model.state', 'learn.model.state')}",
    "mmengine.": f"python tools/model_converters/publish_model.py of MMPretrain, or {_ALONE}",
}


def scan(pickle: bytes, name: str) -> int:
    """Check one pickle's instructions; the number of them.

    Raises:
        ModelRejected: it names a function or class that weights do not need, or is no pickle torch wrote.
    """
    stream = io.BytesIO(pickle)
    count = _scan(stream, name)
    if stream.tell() != len(pickle):
        raise ModelRejected(f"{name}: bytes follow the end of its pickle", hint=SAVE_AGAIN)
    return count


def scan_legacy(head: bytes, name: str) -> int:
    """Check the five pickles that start a file of torch before 1.6 (number, version, system, object, storage keys)."""
    stream = io.BytesIO(head)
    return sum(_scan(stream, name) for _ in range(PICKLES))


def looks_honest(pickles: bytes, count: int = 1) -> bool:
    """Whether what is refused is a network saved whole, or weights in a newer pickle protocol: nothing else is called.

    A guess that decides on the words of a hint alone. A class counts by its library and its own name in capitals: what
    a module of that library has imported (`torch.nn.x` and `os.system`), and its functions, which may fetch or open
    other files, do not. A class of the script that saved it is not among them: it could not be found again.

    Args:
        count: how many pickles follow each other.
    """
    stream, names, texts = io.BytesIO(pickles), list[tuple[str, str]](), list[str]()
    try:
        for _ in range(count):
            memo, top = list[str | None](), None  # texts are said once, and then looked up
            for number, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
                if number > MAX_OPCODES:
                    return False
                if opcode.name == "MEMOIZE":
                    memo.append(top)
                    continue
                top = str(argument) if "UNICODE" in opcode.name else None
                if opcode.name in ("BINGET", "LONG_BINGET") and isinstance(argument, int) and argument < len(memo):
                    top = memo[argument]
                if top is not None:
                    texts.append(top)
                if opcode.name == "GLOBAL":
                    module, _, name = str(argument).partition(" ")
                    names.append((module, name))
                elif opcode.name == "STACK_GLOBAL":
                    names.append((texts[-2], texts[-1]))
                elif opcode.name in ("INST", "EXT1", "EXT2", "EXT4"):
                    return False
    except (ValueError, IndexError, OverflowError):
        return False
    return bool(names) and all(_honest(module, name) for module, name in names)


def _honest(module: str, name: str) -> bool:
    path = f"{module}.{name}"
    known = path in GLOBALS or path in BUILT_IN or path in HONEST_NAMES
    return known or (f"{module}.".startswith(HONEST) and _CLASS.fullmatch(name) is not None)


def _scan(stream: io.BytesIO, name: str) -> int:
    """Check one pickle from the stream's position to its STOP; the number of instructions.

    Args:
        stream: left just after the STOP.
        name: of the file, for messages.
    """
    count = 0
    try:
        for opcode, argument, _ in pickletools.genops(stream):
            count += 1
            if opcode.name not in OPCODES:
                raise ModelRejected(
                    f"{name}: its pickle uses the instruction {opcode.name}, which no saved weights need",
                    hint=SAVE_AGAIN,
                )
            if opcode.name == "GLOBAL":
                _check_global(str(argument).replace(" ", ".", 1), name)
            elif isinstance(argument, str | bytes) and len(argument) > MAX_STRING:
                raise ModelRejected(f"{name}: its pickle holds a string of {len(argument):,} bytes", hint=SAVE_AGAIN)
            if count > MAX_OPCODES:
                raise ModelRejected(f"{name}: its pickle has more than {MAX_OPCODES:,} instructions", hint=SAVE_AGAIN)
    except (ValueError, IndexError, OverflowError) as error:  # genops: the bytes are no pickle, or stop in its middle
        raise ModelRejected(f"{name}: its pickle is damaged or cut short", hint="fetch or save it again") from error
    return count


def _check_global(path: str, name: str) -> None:
    """Refuse a function or class that is not in `GLOBALS`, in the words of what it most likely is."""
    if path in GLOBALS:
        return
    if path.startswith(_QUANTISED):
        raise ModelRejected(
            f"{name} holds quantised tensors ({clean(path)})", hint="audit the checkpoint they were made from"
        )
    if path.startswith(_SHARDED):
        raise ModelRejected(
            f"{name} holds one process's share of the weights ({clean(path)})",
            hint=FULL,
        )
    for toolkit, hint in TOOLKITS.items():
        if path.startswith(toolkit):
            raise ModelRejected(f"{name} holds objects of its toolkit beside the weights ({clean(path)})", hint=hint)
    raise ModelRejected(
        f"{name} is refused: opening it would call {clean(path)!r}, which weights do not need", hint=SAVE_AGAIN
    )
