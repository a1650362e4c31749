"""Edits in other programs that run models: EasySteer and vllm-lens inside vLLM, and TransformerLens's own specs.

    rl.serving.save_easysteer(reft, "steering.json")     # vllm serve MODEL --steering-config steering.json
    hooks = rl.serving.vllm_lens_hooks(reft, batch)      # SamplingParams(extra_args={"apply_hooks": hooks})
    specs = rl.serving.intervention_specs(reft, batch)   # remote_bridge.forward(..., intervene=specs)

None of these programs was run here, because vLLM needs a GPU. What is written follows the source of
each at a commit that its module names, and the tests compute the change of the activations from
what was written.
"""

from reftlens.arguments import explain_all
from reftlens.edit.serving.easysteer import load_easysteer, save_easysteer
from reftlens.edit.serving.specs import intervention_specs
from reftlens.edit.serving.vllm_lens import vllm_lens_hooks

__all__ = ["intervention_specs", "load_easysteer", "save_easysteer", "vllm_lens_hooks"]

explain_all(globals())
