"""Trains image classifiers from a recipe: `python -m trainer fit RECIPE --data FOLDER --out DIR`. Read `fit.py` first.

The package runs alone on a GPU machine; its results reach gpuops through files only (docs/trainer.md).
"""

# The number of the command line and the run directory's layout; gpuops checks it before it ships this folder.
CONTRACT = 1
__version__ = "0.1.0"
