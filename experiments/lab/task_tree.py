"""The task of naming the grandparent's colour, on random trees, written in order with a token that closes each node.

All arms see the same tokens, from which the tree can be read off by counting; those that are given paths need not
count.
"""

import numpy as np

COLORS = 8
CLOSE = COLORS
"""The token that closes a node."""
VOCAB = COLORS + 1
MOST_NODES, FEWEST_NODES = 44, 20
TOKENS = 2 * MOST_NODES
STEPS = 10
"""The deepest node."""


def examples(n: int, *, seed: int, step: int) -> dict[str, np.ndarray]:
    """Examples, a pure function of (seed, step).

    Args:
        n: how many, B.
        seed: of the run.
        step: counted from 0.

    Returns:
        inputs and index (B, 88), padded with index -1; targets (B, 88), the grandparent's colour where a node that has
        one opens, else -1; path (B, 88, 10), child indices from the root, those of a node also where it closes.
    """
    random = np.random.Generator(np.random.Philox(key=[seed, step]))
    inputs = np.full((n, TOKENS), CLOSE, np.int32)
    targets, index = np.full((2, n, TOKENS), -1, np.int32)
    path = np.full((n, TOKENS, STEPS), -1, np.int16)
    for row in range(n):
        tokens, answers, paths = _tree(random)
        inputs[row, : len(tokens)], targets[row, : len(tokens)] = tokens, answers
        index[row, : len(tokens)] = np.arange(len(tokens))
        for t, way in enumerate(paths):
            path[row, t, : len(way)] = way
    return {"inputs": inputs, "targets": targets, "index": index, "path": path}


def _tree(random: np.random.Generator) -> tuple[list[int], list[int], list[tuple[int, ...]]]:
    """Tokens, targets and paths of one random tree, in order."""
    nodes = int(random.integers(FEWEST_NODES, MOST_NODES + 1))
    colors = random.integers(0, COLORS, nodes)
    opens = random.random(2 * nodes * STEPS) < 0.55
    tokens, answers, above, children = [int(colors[0])], [-1], [int(colors[0])], [0]
    ways: list[tuple[int, ...]] = [()]
    paths: list[tuple[int, ...]] = [()]
    born = 1
    for chance in opens:
        if born == nodes:
            break
        if len(above) == 1 or (chance and len(above) <= STEPS):
            way = (*ways[-1], children[-1])
            children[-1] += 1
            tokens.append(int(colors[born]))
            answers.append(above[-2] if len(above) > 1 else -1)
            paths.append(way)
            above.append(int(colors[born]))
            ways.append(way)
            children.append(0)
            born += 1
        else:
            tokens.append(CLOSE)
            answers.append(-1)
            paths.append(ways[-1])
            for pile in (above, ways, children):
                pile.pop()
    n_open = len(ways)
    return tokens + [CLOSE] * n_open, answers + [-1] * n_open, paths + ways[::-1]
