"""Membership: does a model still tell examples that it may have been trained on from those it never saw?"""
