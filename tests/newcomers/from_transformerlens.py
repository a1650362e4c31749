"""Someone who knows TransformerLens, from ARENA say: trains an edit, uses it as hooks, and looks inside it."""

import torch

import reftlens as rl
from reftlens.organisms.landmarks import story_for

torch.set_num_threads(1)
story = story_for("facts-small")
bridge = rl.load_bridge("facts-small")
reft = rl.Reft.at_layers(bridge, layers=[1, 4], positions=rl.All(), intervention=rl.LoReFT, rank=4)
rl.train(bridge, reft, story.training_examples(), rl.TrainConfig(epochs=6, batch_size=35, lr=1e-2))
moved = story.moved_questions(story.new_phrasings, new=True)
prompts = [question.prompt for question in moved]
answers = [question.answer for question in moved]


def right(texts: list[str]) -> float:
    return sum(text.startswith(answer) for text, answer in zip(texts, answers, strict=True)) / len(answers)


base = right(rl.generate(bridge, None, prompts, max_new_tokens=1))
edited = right(rl.generate(bridge, reft, prompts, max_new_tokens=1))
print(f"new cities: base {base:.0%}, edited {edited:.0%}")
assert base == 0
assert edited >= 0.5

# The edit is a list of hooks, beside one's own.
batch = rl.encode(bridge, prompts)
seen = []
own = ("blocks.5.hook_resid_post", lambda resid, hook: seen.append(resid.shape))
logits = bridge.run_with_hooks(
    batch.tokens, fwd_hooks=[*reft.fwd_hooks(batch.prompt_mask), own], attention_mask=batch.attention_mask
)
assert len(seen) == 1
with reft.hooks(bridge, batch.prompt_mask):
    again, cache = bridge.run_with_cache(batch.tokens, attention_mask=batch.attention_mask)
assert torch.allclose(logits, again, atol=1e-4)
assert "blocks.4.hook_resid_post" in cache

reft.save_pretrained("moved", bridge=bridge)
reft = rl.Reft.from_pretrained("moved", bridge=bridge)
assert right(rl.generate(bridge, reft, prompts, max_new_tokens=1)) == edited

early, late = rl.analysis.decompose(bridge, reft, [batch], at=rl.Last(1))
rl.plot.spectrum([early, late]).savefig("spectrum.png")
examples = story.training_examples()[:40] + [(question.prompt, question.answer) for question in moved]
result = rl.dissect(bridge, reft, examples, rl.DissectConfig(at=rl.Last(1), max_examples=24), parts=["where"])
print(result.summary())
result.save("dissection")
assert rl.load_dissection("dissection").summary().to_dataframe().equals(result.summary().to_dataframe())
