"""An edited copy of the checkpoint: what was asked for, the methods, and the proof on the written file."""
