"""Example-tied dropout: train so that what is memorized sits in units that can be dropped afterwards.

After Maini et al. 2023, section 5. Some channels of a layer, the generalizing ones, are on for every example; each
other channel, a memorizing one, is on for an example with a fixed probability, for the same examples in every epoch.
Which is decided by a hash of (seed, example id, channel): there is no table, and no random state is touched.

`layer` is the dropout, `ids` tells it the batch's examples. `tie` puts it behind one layer of any network; `add` finds
which layers can be tied, `strip` writes the weights that do without it, on images of `probe`; `modes` sets all layers
of a network for a while; `rules` reads and restores it in checkpoints.
"""

from __future__ import annotations

from memaudit.network.tied_dropout.add import add_tied_dropout
from memaudit.network.tied_dropout.ids import example_ids
from memaudit.network.tied_dropout.layer import ExampleTiedDropout
from memaudit.network.tied_dropout.modes import bypassed, set_mode
from memaudit.network.tied_dropout.rules import restore, split_rules
from memaudit.network.tied_dropout.strip import feeding, strip_tied_dropout
from memaudit.network.tied_dropout.tie import layers_of

__all__ = [
    "ExampleTiedDropout",
    "add_tied_dropout",
    "bypassed",
    "example_ids",
    "feeding",
    "layers_of",
    "restore",
    "set_mode",
    "split_rules",
    "strip_tied_dropout",
]
