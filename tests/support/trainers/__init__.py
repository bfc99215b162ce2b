"""Networks of other trainers, written from their papers and published layouts.

They are the oracles of models/checkpoints/sources/trainers/, and share no code with models/.
"""
