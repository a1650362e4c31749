"""The light cone of an edit: counterfactual runs of a frozen base, from the first layer and token that an edit changes on."""
