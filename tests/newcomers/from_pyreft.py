"""Someone with a pyreft checkpoint: converts it, checks it, trains it further, deploys it, and writes it back."""

import subprocess
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import reftlens as rl
from reftlens.organisms import ORGANISMS

torch.set_num_threads(1)


def reftlens(*arguments: str, code: int = 0) -> str:
    done = subprocess.run([sys.executable, "-m", "reftlens", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    return " ".join((done.stdout + done.stderr).split())


bridge = rl.load_bridge("facts-small")
prompt = "Gate of Corran stands in the city of"
# Stands in for the folder that pyreft's `reft_model.save` wrote.
theirs = rl.Reft.at_layers(bridge, layers=[1, 4], positions="f1+l1", intervention=rl.LoReFT, rank=4)
rl.save_pyreft(theirs, "from-pyreft")

# A pyreft folder given to another command says what to do, and doing it works.
said = reftlens("generate", "from-pyreft", prompt, "--model", "facts-small", code=1)
assert "reftlens convert from-pyreft --model MODEL --positions f5+l5" in said, said
reftlens("convert", "from-pyreft", "--model", "facts-small", "--positions", "f1+l1", "--out", "converted")
assert prompt in reftlens("generate", "converted", prompt)

reft = rl.load_pyreft("from-pyreft", bridge=bridge, positions="f1+l1")
assert rl.check_sites(bridge, reft).holds
batch = rl.encode(bridge, [prompt])
logits = [bridge.run_with_hooks(batch.tokens, fwd_hooks=edit.fwd_hooks(batch)) for edit in (theirs, reft)]
assert torch.allclose(*logits, atol=1e-5)
print(rl.preview(bridge, rl.At(-2), prompt))

log = rl.train(bridge, reft, [(prompt, " Halvik")], rl.TrainConfig(epochs=60, lr=1e-2, progress=False))
assert log.loss[-1] < 0.1 < log.loss[0]
assert rl.generate(bridge, reft, [prompt], max_new_tokens=1) == [" Halvik"]
reft.save_pretrained("mine", bridge=bridge)
rl.save_pyreft(reft, "back-again")
back = rl.load_pyreft("back-again", bridge=bridge, positions="f1+l1")
assert rl.generate(bridge, back, [prompt], max_new_tokens=1) == [" Halvik"]

# Deployed with transformers alone.
tokenizer = AutoTokenizer.from_pretrained(ORGANISMS["facts-small"])
model = AutoModelForCausalLM.from_pretrained(ORGANISMS["facts-small"])
tokens = tokenizer([tokenizer.bos_token + prompt], return_tensors="pt")
with rl.attach_to_hf(model, "mine", tokenizer=tokenizer):
    new = model.generate(**tokens, max_new_tokens=1, do_sample=False)[0, tokens["input_ids"].shape[1] :]
assert tokenizer.decode(new) == " Halvik"
