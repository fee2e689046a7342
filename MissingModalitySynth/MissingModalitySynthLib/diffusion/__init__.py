"""Diffusion: noise schedules, samplers as plain functions, and the bridge. A model is just a callable."""
