"""What a sweep says, in sentences."""

from collections.abc import Sequence

from experiments.lab.results import Results
from experiments.lab.store import Json

TRAINED_SHARE = 0.25
"""A run counts as trained if it goes this share of the way from the unigram to the bigram entropy, or further."""
MOST_NAMED = 4
"""Points at the end of the grid that are named one by one."""


def bar(results: Results) -> float:
    """The loss below which a run counts as trained, in nats."""
    data = results.base["data"]
    below = data["bigram"] if data["bigram"] is not None else 0.6 * data["unigram"]
    return data["unigram"] - TRAINED_SHARE * (data["unigram"] - below)


def rule(results: Results) -> str:
    """What "trains" means, in a sentence."""
    return (
        f"A recipe “trains” at a depth if its best learning rate ends below {bar(results):.2f} nats, clearly better "
        f"than counting single tokens ({results.base['data']['unigram']:.2f}). Every recipe is judged at its own best "
        "learning rate, with the same data, steps and warm-up."
    )


def sentences(results: Results) -> list[str]:
    """Who is best at the greatest depth, how deep each recipe trains, and what to be careful about."""
    best = results.best()
    lines = [_ranking([row for row in best if row["depth"] == results.depths[-1]])] if len(results.recipes) > 1 else []
    lines += [_recipe([row for row in best if row["recipe"] == recipe], results) for recipe in results.recipes]
    edges = [f"{row['recipe']} at depth {row['depth']} (the {row['edge']})" for row in best if row["edge"]]
    if edges:
        lines.append(
            f"The best learning rate is the end of those tried for {_listed(edges)}: a wider grid may do better there "
            "(triangles below)."
        )
    unfinished = sum(cell["status"] == "unfinished" for cell in results.cells)
    return [*lines, f"{unfinished} cells have not ended yet."] if unfinished else lines


def _listed(words: Sequence[str]) -> str:
    """The words, or the first few and how many more."""
    if len(words) > MOST_NAMED:
        return f"{', '.join(words[:MOST_NAMED])} and {len(words) - MOST_NAMED} more"
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _ranking(rows: Sequence[Json]) -> str:
    ended = sorted((row for row in rows if row["loss"] is not None), key=lambda row: row["loss"])
    if not ended:
        return f"At depth {rows[0]['depth']} no recipe trains." if rows else "Nothing has ended yet."
    first, *others = [f"{row['recipe']} {row['loss']:.2f}" for row in ended]
    rest = f", then {', '.join(others)}" if others else ""
    return f"At the greatest depth, {ended[0]['depth']} layers, the lowest loss is {first} nats{rest}."


def _recipe(rows: Sequence[Json], results: Results) -> str:
    name, depths = rows[0]["recipe"], ", ".join(str(row["depth"]) for row in rows)
    trained = [row for row in rows if row["loss"] is not None and row["loss"] < bar(results)]
    if not trained:
        return f"{name} trains at none of the depths tried ({depths})."
    deepest, lowest = trained[-1], min(trained, key=lambda row: row["loss"])
    beyond = [row for row in rows if row["depth"] > deepest["depth"]]
    states = [
        f"{row['depth']} ({'no rate ends well' if row['loss'] is None else format(row['loss'], '.2f')})"
        for row in beyond
    ]
    reach = f"not at {', '.join(states)}" if beyond else "the greatest tried"
    text = f"{name} trains up to depth {deepest['depth']}, {reach}"
    if len(trained) > 1:
        where = "there" if lowest is deepest else f"at depth {lowest['depth']}"
        text += f"; its lowest loss, {lowest['loss']:.2f} nats, is {where}"
    return text + "."
