"""Weights into a transformers network and back: by the names of the file, which need not be those of the modules."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from memaudit.adapters.building import at_most
from memaudit.checkpoints import Checkpoint
from memaudit.checkpoints.load import check_finite, needs_bytes
from memaudit.errors import MemauditError, ModelRejected
from memaudit.text import clean
from memaudit_transformers.folder import Saved
from memaudit_transformers.library import quiet

# Buffers that are not in the checkpoint may add to it, but not without bound.
MAX_GROWTH, GROWTH_SLACK = 4, 1 << 28  # times the checkpoint's float32 bytes; bytes
# Tables that older versions saved and this one computes.
COMPUTED = (
    *("position_ids", "token_type_ids", "relative_position_index", "inv_freq", "num_batches_tracked"),
    *(".masked_bias", ".attn.bias", ".attention.bias"),
)
WRAPPERS = ("module", "_orig_mod")
SHOWN = 5  # names in a message


def load(saved: Saved, checkpoint: Checkpoint) -> PreTrainedModel:
    """The network with every tensor of `checkpoint` in it, proved by what it would write.

    Raises:
        ModelRejected: tensors are missing, left over or of other shapes, or the settings ask for far more.
        PremiseBroken: a weight is NaN or infinite.
    """
    try:
        with quiet():
            outline = _outline(saved, checkpoint)
            given = named_as_saved(checkpoint, named_by_file(outline, outline.state_dict()))
            check_finite(given)
            with torch.random.fork_rng(devices=[]):
                network = saved.network.from_pretrained(
                    None, config=saved.config, state_dict=dict(given), dtype=torch.float32, local_files_only=True
                )
    except MemauditError:
        raise
    except Exception as error:
        raise ModelRejected(
            f"{clean(checkpoint.path.name)} is not the {saved.network.__name__} of its config.json: "
            f"{type(error).__name__}: {clean(str(error), 500)}",
            hint="its config.json and its weights are from different models; save both again by save_pretrained",
        ) from error
    _prove(network, given, checkpoint)
    return network.eval().float()


def named_as_saved(checkpoint: Checkpoint, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors by the names that transformers gave them, in float32 where they are of another floating type.

    Reading took off what all names begin with; it is put back where the network's own names begin with it.
    """
    kept = [part for part in checkpoint.stripped_prefix.split(".") if part and part not in WRAPPERS]
    prefixes = ["".join(f"{part}." for part in kept[start:]) for start in range(len(kept), -1, -1)]
    prefix = max(prefixes, key=lambda p: sum(p + name in wanted for name in checkpoint.tensors))
    return {prefix + n: t.float() if t.is_floating_point() else t for n, t in checkpoint.tensors.items()}


def named_by_file(network: PreTrainedModel, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of `network` by the names that its checkpoint had."""
    with quiet():
        return dict(revert_weight_conversion(network, dict(state)))


def _outline(saved: Saved, checkpoint: Checkpoint) -> PreTrainedModel:
    """The network without memory, for its names.

    Raises:
        ModelRejected: the settings ask for a network much larger than the file.
    """
    given = checkpoint.tensors
    name = saved.network.__name__
    with at_most(2 * len(given) + 1000, name), torch.device("meta"):
        network = saved.network(saved.config)
    needed = needs_bytes([*network.parameters(), *network.buffers()])
    if needed > MAX_GROWTH * needs_bytes(given.values()) + GROWTH_SLACK:
        raise ModelRejected(
            f"{name} with this config.json needs {needed:,} bytes for a checkpoint of {needs_bytes(given.values()):,}",
            hint="its config.json and its weights are from different models",
        )
    return network


def _prove(network: PreTrainedModel, given: Mapping[str, Tensor], checkpoint: Checkpoint) -> None:
    """Raise unless the network would write what the file holds, name for name and bit for bit.

    What transformers itself would only warn of (a head with random weights, tensors that are not used) is caught here.
    """
    written = named_by_file(network, network.state_dict(keep_vars=True))
    filled = {tensor.data_ptr() for name, tensor in written.items() if name in given}  # tied ones are saved once
    learned = {parameter.data_ptr() for parameter in network.parameters()}
    absent = [(n, t.data_ptr()) for n, t in written.items() if n not in given and t.data_ptr() not in filled]
    missing = [n for n, place in absent if place in learned or not n.endswith(COMPUTED)]
    unused = [n for n in given if n not in written and not n.endswith(COMPUTED)]
    where = clean(checkpoint.path.name)
    if missing or unused:
        faults = [_list("missing", missing), _list("not used", unused)]
        raise ModelRejected(
            f"the tensors in {where} are not those of {type(network).__name__}: {', '.join(f for f in faults if f)}",
            hint="save the classifier that was trained, with its head, by save_pretrained",
        )
    changed = [n for n, t in given.items() if n in written and not n.endswith(COMPUTED) and not _same(t, written[n])]
    if changed:
        raise ModelRejected(
            f"transformers loads {_list('tensors', changed)} of {where} with other values than the file has",
            hint="install the version that saved it (transformers_version in config.json)",
        )


def _same(given: Tensor, loaded: Tensor) -> bool:
    return given.shape == loaded.shape and torch.equal(given, loaded.detach().to(given.dtype))


def _list(what: str, names: list[str]) -> str:
    if not names:
        return ""
    more = ", ..." if len(names) > SHOWN else ""
    return f"{len(names)} {what} ({', '.join(repr(clean(n)) for n in names[:SHOWN])}{more})"
