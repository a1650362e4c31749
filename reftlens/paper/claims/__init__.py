"""Side claims of the ReFT paper (Wu et al. 2024, arXiv:2404.03592) as small experiments, each with a control that can fail.

Each file is one claim: `run(model, seed=...)` on the embedded organism, with settings that fit it, or on any other
model, with the paper's. What a model cannot show is in the result, not left out.
"""
