"""The officer's page: one audit or verification on one or two sheets, in plain sentences, to be signed and filed."""
