"""Running a network over examples: batches that fit in memory, the journal, what an answer is, training steps."""
