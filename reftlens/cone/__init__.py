"""The light cone of an edit: computes only the part of a run that the edit can change, exactly.

The base is frozen and causal, so an edit at layer l and position p changes only activations at
layers >= l and positions >= p. Everything outside that cone is the same in every step: the residual
stream that enters it, and the keys and values of earlier positions that its attention reads. `hold`
computes these once, without gradient. `run_cone` computes the rest with the same kernels as a whole
run. This is not an approximation.

    edits = reft.edits(batch)
    held = hold(bridge, batch, edits)
    logits = run_cone(bridge, held, edits)      # the whole run's logits from column held.start on
    logits = run_cone(bridge, held, edits, logits_at=mask)      # [n, d_vocab]: at these tokens only

Bidirectional models have no cone in positions. Neither do recurrent models, whose state is not in
keys and values. For these, only earlier layers are skipped, and the log says so. The cones of each
model are verified before first use (`proof`).
"""
