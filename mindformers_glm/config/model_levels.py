"""How much is known of a model on a device, in MindSpore Transformers' five words.

The words and their order are those of mindformers 1.7.0 (its README, "Model Level Introduction",
inference); docs/models.md says which evidence this project asks for before it uses one.
"""

# What the line at the start says of each.
MODEL_LEVELS = {
    "Released": "accepted by testers, evaluated as accurate as its reference",
    "Validated": "evaluated by its developers as accurate as its reference",
    "Preliminary": "tried by its developers in parts, its accuracy was not evaluated",
    "Untested": "nobody has seen it run there, or not as a whole",
    "Community": "contributed and maintained by the community",
}


def describe_level(level: str, device_target: str) -> str:
    """A level as one line for who loads the model."""
    return (
        f"model level on {device_target}: {level} ({MODEL_LEVELS[level]}; docs/models.md has the "
        "evidence)"
    )
