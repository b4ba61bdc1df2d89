"""The laboratory: modules that two or more experiments import.

Reading order: `names` (words on the command line to objects), `options` (those that experiments share), `corpus` and
`data` (files to batches), `task` and those beside it (what is learned), `train` (one run as pure functions), `lanes`
(several runs side by side in one program), `cost` (FLOPs and memory, counted); then `grid` (cells, groups and jobs, and
their names), `store` (a run's folder), `claim` (workers that share it), `outcome` (how a cell ended), `sweep` (the loop
over jobs), `progress`; then `results` (the folder read back as tables), `headline`, `chart`, `profile_chart` and
`page`. Beside them, `command_line` and `finding` are the beginning and the end of every experiment, and `trees` holds
documents with their trees.

In a notebook:

    from . import data, lanes, train

    corpus = data.standard_library()
    trainer = train.Trainer(task=train.NextToken(model=model))
    history = lanes.fit(trainer, corpus, learning_rates=(1e-3, 3e-3), steps=200)

or a sweep, resumable as at the command line, of recipes that no table knows:

    from . import progress, sweep
    from .grid import Grid, Setting
    from .results import Results
    from .store import Folder

    grid = Grid(depths=(2, 8), recipes={"pre-norm": PreNorm(), "another": Another()})
    mine = sweep.Sweep(folder=Folder("runs/mine"), grid=grid, setting=Setting(), corpus=corpus)
    left_to_others = sweep.run(mine, progress.Plain())
    best = Results.of("runs/mine").best()
"""
