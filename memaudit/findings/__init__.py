"""The report as plain data: what an audit found, in the shapes of `report.json`. No torch here.

Every model forbids unknown keys and non-finite numbers; a figure that could not be computed is `None` and a
warning says why. The keys are a contract: add, never rename, and raise `report.document.SCHEMA_VERSION`.
Annotations are not postponed here: pydantic would compile each one again at every start.
"""

from memaudit.findings.audits import AUDITS as AUDITS
from memaudit.findings.audits import OVER_TIME as OVER_TIME
from memaudit.findings.audits import AuditKind as AuditKind
from memaudit.findings.base import Kind as Kind
from memaudit.findings.base import Number as Number
from memaudit.findings.base import Part as Part
from memaudit.findings.base import Plain as Plain
from memaudit.findings.base import Prediction as Prediction
from memaudit.findings.base import Rate as Rate
from memaudit.findings.base import UnitRef as UnitRef
from memaudit.findings.base import interned as interned
from memaudit.findings.erasure import EditedLayer as EditedLayer
from memaudit.findings.erasure import ErasedExample as ErasedExample
from memaudit.findings.erasure import Erasure as Erasure
from memaudit.findings.erasure import ErasureScores as ErasureScores
from memaudit.findings.erasure import NoisePoint as NoisePoint
from memaudit.findings.erasure import RelearnPoint as RelearnPoint
from memaudit.findings.erasure import TriedEdit as TriedEdit
from memaudit.findings.finding import Atypicality as Atypicality
from memaudit.findings.finding import AugmentedControl as AugmentedControl
from memaudit.findings.finding import Controls as Controls
from memaudit.findings.finding import Estimate as Estimate
from memaudit.findings.finding import EstimatePart as EstimatePart
from memaudit.findings.finding import Example as Example
from memaudit.findings.finding import Finding as Finding
from memaudit.findings.finding import FlaggedOthersControl as FlaggedOthersControl
from memaudit.findings.finding import Learning as Learning
from memaudit.findings.finding import Neighbour as Neighbour
from memaudit.findings.finding import Outcome as Outcome
from memaudit.findings.finding import RandomControl as RandomControl
from memaudit.findings.finding import ReferenceAccuracy as ReferenceAccuracy
from memaudit.findings.finding import Sampled as Sampled
from memaudit.findings.group import CurvePoint as CurvePoint
from memaudit.findings.group import Groups as Groups
from memaudit.findings.group import KnownUnits as KnownUnits
from memaudit.findings.group import MatchedControls as MatchedControls
from memaudit.findings.group import Memorization as Memorization
from memaudit.findings.group import Neuron as Neuron
from memaudit.findings.group import Share as Share
from memaudit.findings.group import Slice as Slice
from memaudit.findings.group import Stability as Stability
from memaudit.findings.group import Summary as Summary
from memaudit.findings.layers import GradientPoint as GradientPoint
from memaudit.findings.layers import LayerEvidence as LayerEvidence
from memaudit.findings.layers import LayerUnits as LayerUnits
from memaudit.findings.layers import LayerVerdict as LayerVerdict
from memaudit.findings.layers import Retrain as Retrain
from memaudit.findings.layers import RetrainEpoch as RetrainEpoch
from memaudit.findings.layers import RewindPoint as RewindPoint
from memaudit.findings.layers import SeriesPoint as SeriesPoint
from memaudit.findings.layers import Units as Units
from memaudit.findings.run import ConfigValue as ConfigValue
from memaudit.findings.run import DataInfo as DataInfo
from memaudit.findings.run import DataSource as DataSource
from memaudit.findings.run import Effort as Effort
from memaudit.findings.run import Gate as Gate
from memaudit.findings.run import Inputs as Inputs
from memaudit.findings.run import LabelAccuracy as LabelAccuracy
from memaudit.findings.run import ModelInfo as ModelInfo
from memaudit.findings.run import ReportWarning as ReportWarning
from memaudit.findings.run import ToolInfo as ToolInfo
