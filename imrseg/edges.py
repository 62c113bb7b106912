"""placeholder until edge refinement is written"""

EDGES = ("guided", "grabcut")


def clean(soft, pixels, how, level=0.5):
    return soft
