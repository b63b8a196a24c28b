"""Every view of a verification, each drawn from the plain data of `report.verified.Verification` and nothing else."""
