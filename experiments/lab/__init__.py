"""The laboratory: modules that two or more experiments import.

Reading order: `names` (words on the command line to objects), `corpus` and `data` (files to batches), `train` (one run
as pure functions), `lanes` (several runs side by side in one program), `cost` (FLOPs and memory, counted); then `grid`
(cells, groups and their names), `store` (a run's folder), `claim` (workers that share it), `outcome` (how a cell
ended), `sweep` (the loop over groups), `progress`; then `results` (the folder read back as tables), `headline`,
`chart`, `profile_chart` and `page`. Beside them, `command_line` and `finding` are the beginning and the end of an
experiment with predictions, and `trees` holds documents with their trees.

In a notebook:

    from experiments.lab import data, lanes, train

    corpus = data.standard_library()
    trainer = train.Trainer(task=train.NextToken(model=model))
    history = lanes.fit(trainer, corpus, learning_rates=(1e-3, 3e-3), steps=200)
"""
