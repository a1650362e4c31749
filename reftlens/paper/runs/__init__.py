"""Runs: a training run as settings (`config`), the paper's as presets (`presets`), what they train (`parameters`), and the
folder that one leaves (`run`, `folder`).

Settings and presets load without torch, so that listing them is quick; import what is wanted from its own module.
"""
