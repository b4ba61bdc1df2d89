"""The benchmark: stackjax beside its peers, see `python -m experiments.bench --help`.

Reading order: `peers`, `program` (one peer made ready and timed), `alone`, `agree`, `vmapped`, `decoding`,
then `verdict`, `page` and `__main__`.
"""
