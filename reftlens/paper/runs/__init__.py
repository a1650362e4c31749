"""Training runs: settings (`config`), the paper's presets (`presets`), their parameter counts (`parameters`), and the folder
of a run (`run`, `folder`).

Settings and presets load without torch, so that listing them is quick. Import each name from its own module.
"""
