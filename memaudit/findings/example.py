"""An example: who it is, and what its manifest says of it."""

from pydantic import Field

from memaudit.findings.base import Plain


class Example(Plain):
    """A flagged example and where it came from."""

    id: str = Field(description="hash of the example's content: survives retraining, renaming and reordering")
    source: str = Field(
        description="path below the data set's root; a text, shortened; 'array': it has no name, or none is shown"
    )
    label: int = Field(ge=0, description="the label it was trained with: an index into the model's classes")
    index: int = Field(ge=0, description="row in its source, from 0")
    line: int | None = Field(default=None, ge=1, description="line of the manifest that flagged it")
    declared_id: str | None = Field(default=None, description="the id that a manifest or an array gave the example")
    true_label: int | None = Field(default=None, ge=0)
    note: str | None = None
    columns: dict[str, str] = Field(default={}, description="further columns of the user's manifest, by name")
