"""Tables of tensors that are not a whole model: recognised by their names, refused with what to do instead."""

from __future__ import annotations

from collections.abc import Iterable

from memaudit.errors import ModelRejected
from memaudit.text import clean

LORA = ("lora_A", "lora_B", "lora_up", "lora_down", "lora_embedding", "lora_magnitude", "hada_w1", "hada_w2")
# GPTQ / AWQ, bitsandbytes 8 and 4 bit, torch's own static quantisation.
QUANTISED = (".qweight", ".qzeros", ".g_idx", ".SCB", ".absmax", ".quant_map", "._packed_params", ".zero_point")
OPTIMIZER = (".exp_avg", ".exp_avg_sq", ".momentum_buffer")
FLAT = ("_flat_param", "flat_param_")  # FSDP's pieces of many parameters in a row
MERGE = (
    "merge them into the base model and save it: "
    "PeftModel.from_pretrained(base, FOLDER).merge_and_unload().save_pretrained(OUT)"
)
ZERO = "gather it with the script that DeepSpeed left beside it: python FOLDER/zero_to_fp32.py FOLDER OUT"
FULL = (
    "where it was trained: torch.distributed.checkpoint.state_dict.get_model_state_dict(model, "
    "options=StateDictOptions(full_state_dict=True)), saved by one process"
)
_ORIGINAL = "audit the unquantised checkpoint it was made from"


def refuse_partial(names: Iterable[str], where: str) -> None:
    """Raise where the names show adapters, quantised weights or an optimizer's state.

    Raises:
        ModelRejected: says which, an example, and what to give instead.
    """
    names = list(names)
    if lora := [n for n in names if any(part.startswith(LORA) for part in n.split("."))]:
        what = "only LoRA adapters" if len(lora) == len(names) else "unmerged LoRA adapters"
        raise ModelRejected(
            f"{where} holds {what} ({clean(lora[0])!r} and {len(lora) - 1} more)",
            hint=MERGE,
        )
    for name in names:
        if name.endswith(QUANTISED) or ".quant_state." in name:
            raise ModelRejected(f"{where} holds quantised weights ({clean(name)!r})", hint=_ORIGINAL)
    if flat := [n for n in names if n.rpartition(".")[2].startswith(FLAT)]:
        raise ModelRejected(f"{where} holds one process's share of the weights ({clean(flat[0])!r})", hint=FULL)
    if optimizer := [n for n in names if n.endswith(OPTIMIZER)]:
        raise ModelRejected(
            f"{where} holds an optimizer's state ({clean(optimizer[0])!r})", hint="give the model's own checkpoint"
        )
