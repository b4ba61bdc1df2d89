"""The laboratory: modules that two or more experiments import.

Reading order: `names` (words on the command line to objects), `options` (those that experiments share), `corpus` and
`data` (files to batches), `task` and those beside it (what is learned), `train` (one run as pure functions), `lanes`
(several runs by one program), `cost` (FLOPs and memory, counted); then `grid` (cells, groups and jobs,
and their names), `store` (a run's folder), `claim` (workers that share it), `device_pool` (jobs on several devices),
`outcome` (how a cell ended), `sweep_plan` (a sweep described and checked), `sweep` (the loop over its jobs), `extend`
(learning rates that it adds), `progress`; then `results` (the folder read back as tables), `headline`, `chart`,
`profile_chart` and `page`. Beside them, `command_line` and `finding` are the beginning and the end of every
experiment, `trees` holds documents with their trees, `position_matrix` draws what a position does, and `committed`,
`documented` and `notebook` serve pages and notebooks.

In a notebook:

    from experiments.lab import data, lanes, train

    corpus = data.standard_library()
    trainer = train.Trainer(task=train.NextToken(model=model))
    history = lanes.fit(trainer, corpus, learning_rates=(1e-3, 3e-3), steps=200)

or a sweep, resumable as at the command line, of recipes that no table knows:

    from experiments.lab import progress, sweep
    from experiments.lab.grid import Grid, Setting
    from experiments.lab.results import Results, table
    from experiments.lab.store import Folder

    grid = Grid(depths=(2, 8), recipes={"pre-norm": PreNorm(), "another": Another()})
    mine = sweep.Sweep(folder=Folder("runs/mine"), grid=grid, setting=Setting(), corpus=corpus)
    left_to_others = sweep.run(mine, progress.Plain())
    best = Results.of("runs/mine").best()

or of any field of the setting, with any optimiser of optax, and metrics of one's own beside the loss:

    from experiments.lab import sweep_plan

    setting = Setting(optimizer="optax:lion", metrics="my.module:metrics")
    mine = sweep.Sweep(folder=Folder("runs/widths"), grid=grid, setting=setting, corpus=corpus)
    varied = sweep_plan.vary(mine, d_model=(32, 64), warmup=(0, 20))
    for part in varied:
        sweep.run(part, progress.Plain())
    rows = table(*(Results.of(part.folder.path) for part in varied))

Each row is a cell, {column: value}, which `pandas.DataFrame(rows)` and `polars.DataFrame(rows)` take as it is. Where
stackjax is installed without this checkout, the package is `stackjax.experiments`.
"""
