"""stackjax beside `transformers`, architecture by architecture; see `python -m experiments.parity_table --help`.

`cases` says what is compared, `compare` sends the same random checkpoint through both and compares number by number.
Needs the extra `oracle` (torch and transformers).
"""
