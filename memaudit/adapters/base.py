"""What an adapter is: it turns a checkpoint into a module and knows what reaches it. Everything else is derived."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import ClassVar, final

import torch
from torch import Tensor, nn

from memaudit.adapters import heads
from memaudit.adapters.options import ModelOptions as ModelOptions
from memaudit.adapters.preprocessing import FIELDS, guessed
from memaudit.checkpoints import Checkpoint, Facts
from memaudit.checkpoints.facts import as_metadata
from memaudit.checkpoints.load import fitted
from memaudit.checkpoints.tensors import write_tensors
from memaudit.checkpoints.wrapped import spelled
from memaudit.data.images.preprocess import Preprocess
from memaudit.errors import EnvironmentFault, MemauditError, ModelRejected
from memaudit.network.attention import projected
from memaudit.network.scoped import attributes
from memaudit.network.sites import find_sites
from memaudit.network.tied_dropout import bypassed
from memaudit.network.units import Site
from memaudit.system.files import replace_with
from memaudit.system.memory import out_of_memory
from memaudit.text import clean


class Adapter:
    """A loaded model and how to audit it. Subclasses say how to build one; they override what they know better.

    Attributes:
        module: the network, in eval mode, float32, strictly loaded; parameters need no gradient.
        architecture: its name, as reports print it.
        preprocess: from an example to what the module is called with, where `inputs` is not overridden.
        reason: why this adapter took the checkpoint, in a few words.
        alternatives: architectures that fit the same tensors but compute differently, this one included; more than
            one asks the caller to choose by reference accuracy.
        presets: ways of preparing images that this network is known with, where nobody says which it was trained
            with; `preprocess` is the first until the reference tells them apart. Empty: there is no doubt.
        renamed: from the names that this model's checkpoints have to those of `module`; reading took prefixes off.
        variants: whether the alternatives have the same modules and differ only in settings that no module shows.
        multi_label: an example may have several labels at once; classes are pairs (`heads`).
        further: tensors of the logits' shape that the module returned beside them, when it last ran.
        folders: `write` makes folders as well, of models that came as one.
        test_size: `(C, H, W)` the model is tested at, where that is known, differs and the user chose no size.
    """

    presets: tuple[Preprocess, ...] = ()
    variants: bool = False
    multi_label: bool = False
    further: int = 0
    test_size: tuple[int, int, int] | None = None
    name: ClassVar[str] = ""
    folders: ClassVar[bool] = False

    def __init_subclass__(cls, **options: object) -> None:
        """A subclass says what the module is called with (`inputs`); what is made of its outputs is one rule for all.

        Raises:
            TypeError: it overrides `forward`.
        """
        super().__init_subclass__(**options)
        if "forward" in cls.__dict__:
            raise TypeError(
                f"{cls.__name__}.forward: an adapter does not override forward; override inputs(batch), which says "
                "what the module is called with, or wrap the module"
            )

    def __init__(
        self,
        module: nn.Module,
        *,
        architecture: str,
        preprocess: Preprocess,
        reason: str = "",
        alternatives: tuple[str, ...] = (),
    ) -> None:
        self.renamed: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] = dict
        self.module = module.eval().requires_grad_(False)
        self.architecture = architecture
        self.preprocess = preprocess
        self.reason = reason
        self.alternatives = alternatives or (architecture,)

    @classmethod
    def load(cls, checkpoint: Checkpoint, options: ModelOptions) -> Adapter:
        """Build the architecture on `meta`, compare it with the file's tensors, load strictly.

        Raises:
            ModelRejected: the tensors do not fit, or the architecture cannot be decided.
            UsageError: an option names something that does not exist.
        """
        raise NotImplementedError

    @classmethod
    def example(cls) -> Adapter:
        """A small network with random weights, loaded the way users' files are: what `memaudit adapters test` checks.

        Optional; it must need neither files nor network.
        """
        raise NotImplementedError

    @property
    def encode(self) -> Callable[[Sequence[str]], Tensor] | None:
        """For a network that reads text: from texts to `(N, 2, T)` token ids and mask, by its own tokenizer."""
        return None

    def inputs(self, batch: Tensor) -> tuple[Tensor, ...]:
        """What the module is called with, for a batch of examples; the hook of adapters that know better.

        Args:
            batch: `(N, *preprocess.input_size)` on the module's device: images float32 in [0, 1], token ids int64.

        Returns:
            The module's positional arguments, each with N rows; differentiable by `batch` where that is no token ids.
        """
        if self.preprocess.masked:
            ids, mask = batch.unbind(1)
            return ids, mask
        return (self.preprocess.normalise(batch),)

    @final
    def forward(self, images: Tensor) -> Tensor:
        """Logits `(N, classes)` of a batch of examples (images `(N, C, H, W)` in [0, 1]); differentiable."""
        outputs = self._outputs(images)
        if not self.multi_label and outputs.shape[-1] != 1:
            return heads.below(outputs, self.ends_in)
        if outputs.dim() == 2 and self._probabilities:
            outputs = torch.logit(outputs, heads.EDGE)
        return heads.paired(outputs) if self.multi_label else heads.two_classes(outputs)

    def _outputs(self, images: Tensor) -> Tensor:
        with projected(self.module):
            output = self.module(*self.inputs(images))
        self.further = heads.further(output)
        return heads.logits_of(output, len(images))

    @cached_property
    def ends_in(self) -> str:
        """`softmax` or `sigmoid` where the module returns the probabilities of classes that exclude each other."""
        if self.multi_label:
            return ""
        noise = self._placed(self.noise(2, torch.Generator().manual_seed(0)))
        with torch.no_grad():  # one by one: memory may hold no more
            outputs = torch.cat([self._outputs(noise[:1]), self._outputs(noise[1:])])
        if outputs.shape[-1] < 2 or bool((outputs < 0).any()):
            return ""
        if bool(((outputs.sum(1) - 1).abs() < 1e-3).all()):
            return "softmax"
        inside = bool((outputs < 1).all())
        return "sigmoid" if inside and heads.ends_in_sigmoid(self.module, self._outputs, noise[:2]) else ""

    @cached_property
    def _probabilities(self) -> bool:
        """Whether the module's own outputs are probabilities."""
        return heads.ends_in_sigmoid(self.module, self._outputs, self.blank(2))

    def blank(self, count: int) -> Tensor:
        """`count` examples of zeros `(count, *input_size)`, where the network is."""
        kind = torch.int64 if self.preprocess.tokens else torch.float32
        return self._placed(torch.zeros(count, *self.preprocess.input_size, dtype=kind))

    def _placed(self, batch: Tensor) -> Tensor:
        """`batch` where the network is, numbers that are not whole in the type of its weights."""
        own = next((p.dtype for p in self.module.parameters() if p.is_floating_point()), torch.float32)
        return batch.to(self.device, own) if batch.is_floating_point() else batch.to(self.device)

    def look(self) -> None:
        """Find out, once and on the network as it is, what kind of outputs it has.

        Whoever runs it with units cut, or in training mode, has it look before.
        """
        if "ends_in" not in self.__dict__:
            with torch.no_grad(), attributes(list(self.module.modules()), training=False):
                self.forward(self.blank(1))

    def noise(self, count: int, generator: torch.Generator) -> Tensor:
        """`count` examples of noise in [0, 1], `(count, *input_size)`, on the CPU; of token ids, zeros and ones."""
        noise = torch.rand(count, *self.preprocess.input_size, generator=generator)
        return noise.round().long() if self.preprocess.tokens else noise

    def attempt(self, images: Tensor) -> Tensor:
        """Logits `(n, classes)` of the network as it is, where what goes wrong is its own fault or its transform's.

        Raises:
            ModelRejected: it raises, or what it returns are no logits.
            EnvironmentFault: memory ran out.
        """
        with torch.no_grad(), self.blamed(len(images)):
            return self.forward(images)

    @contextmanager
    def blamed(self, size: int) -> Iterator[None]:
        """Say of whatever goes wrong in the body, which runs the network on `size` images, that it is the network's.

        Raises:
            ModelRejected: the body raises; the message names the line.
            EnvironmentFault: memory ran out.
        """
        try:
            yield
        except MemauditError:
            raise
        except (Exception, SystemExit) as error:
            if out_of_memory(error):
                raise EnvironmentFault(
                    f"out of memory on {self.device} with a batch of {size}",
                    hint="Use a machine with more memory, or --device cpu.",
                ) from error
            batch = (size, *self.preprocess.input_size)
            raise ModelRejected(
                f"the network fails on a batch {batch} on {self.device.type}{_line(error)}: "
                f"{type(error).__name__}: {clean(error)}",
                hint="check --input-size, and that its forward takes batches of any size"
                if self.device.type == "cpu"
                else "what it makes or keeps must be where its input is (register_buffer, device=x.device); "
                "--device cpu does without",
            ) from error

    def state_of(self, checkpoint: Checkpoint) -> dict[str, Tensor]:
        """The tensors of another checkpoint of this network, by the names of its module, in its shapes and types.

        Raises:
            ModelRejected: they are not this network's.
            PremiseBroken: a weight is NaN or infinite.
        """
        tensors = spelled(self.renamed(checkpoint.tensors), self.module.state_dict())
        return fitted(self.module, tensors, stripped_prefix=checkpoint.stripped_prefix, beside=checkpoint.beside)

    def write(self, state: Mapping[str, Tensor], target: Path) -> None:
        """Save `state`, by the names of the module, as a checkpoint that this adapter loads; whole or not at all.

        Args:
            target: a `.safetensors` file, or a new folder where the adapter writes `folders`.
        """
        metadata = {"format": "pt", **as_metadata(self.facts)}
        tensors = {name: value.detach().cpu() for name, value in state.items()}
        replace_with(target, lambda file: write_tensors(tensors, metadata, file))

    @property
    def facts(self) -> Facts:
        """What a written copy says of itself: how inputs are prepared, as far as that is no guess."""
        p, left = self.preprocess, guessed(self.preprocess)
        values = {name: getattr(p, name) for name in FIELDS if name not in left and getattr(p, name)}
        return Facts(preprocess=values | ({"channel_order": "bgr"} if p.bgr else {}))

    def sites(self, images: Tensor) -> list[Site]:
        """Where units can be cut, in execution order, found by following `images` through one forward pass."""
        with bypassed(self.module):
            self.attempt(images)
            return find_sites(self.module, self.forward, images)

    @cached_property
    def num_classes(self) -> int:
        """Width of the logits, seen on two examples of zeros: of one alone, a single number would pass for a logit."""
        return int(self.attempt(self.blank(2)).shape[-1])

    @property
    def parameters(self) -> int:
        """Number of scalar parameters, tied tensors once."""
        return sum(p.numel() for p in self.module.parameters())

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        first = next(self.module.parameters(), None)
        return first.device if first is not None else torch.device("cpu")


def _line(error: BaseException) -> str:
    """Which line raised it: the innermost that is neither PyTorch's nor ours."""
    inside = (Path(torch.__file__).parent, Path(__file__).parents[1])
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if not any(Path(f.filename).is_relative_to(folder) for folder in inside)]
    return f", {clean(Path(own[-1].filename).name)} line {own[-1].lineno} ({clean(own[-1].line)})" if own else ""
