"""Intervals for rates, and tests of whether one group's scores lie above another's. No torch."""

from memaudit.intervals.rates import bootstrap as bootstrap
from memaudit.intervals.rates import bootstrap_runs as bootstrap_runs
from memaudit.intervals.rates import clopper_pearson as clopper_pearson
from memaudit.intervals.rates import correlation as correlation
from memaudit.intervals.rates import mcnemar as mcnemar
from memaudit.intervals.rates import wilson as wilson
