"""Side claims of the ReFT paper (Wu et al. 2024, arXiv:2404.03592) as small experiments, each with a control that can fail.

Each file is one claim: `run(model, seed=...)` uses settings made for the embedded organism, or the
paper's settings for any other model. If a model cannot show part of a claim, the result says so.
"""
