"""The light cone of an edit: the part of a run that it can change, run alone and exactly.

The base is frozen and causal, so an edit at layer l and position p changes only activations at layers >= l and
positions >= p. Everything outside that cone is the same in every step: the residual stream that enters it, and the
keys and values of earlier positions that its attention reads. `hold` computes these once, without gradient;
`run_cone` runs the rest, in the same kernels as a whole run. It is not an approximation.

    edits = reft.edits(batch)
    held = hold(bridge, batch, edits)
    logits = run_cone(bridge, held, edits)      # the whole run's logits from column held.start on
    logits = run_cone(bridge, held, edits, logits_at=mask)      # [n, d_vocab]: at these tokens alone

A bidirectional model has no cone in positions, nor has a recurrent one, whose state is not in keys and values: only its layers
are saved, and the log says so. Each model proves its cone before the first one is run (`proof`).
"""
