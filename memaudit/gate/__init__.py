"""The gate: a policy judged on a report, with waivers and a baseline of accepted findings. No torch."""

from memaudit.gate.policy import Accepted as Accepted
from memaudit.gate.policy import Policy as Policy
from memaudit.gate.policy import apply as apply
