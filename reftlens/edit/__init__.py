"""A trained edit: where it acts (`site`), what it is (`reft`), how it reaches the model (`hooks`), and what is done with it."""
