"""Side by side with `transformers`: the same random checkpoint, run through both, compared number by number.

`cases` says what is compared, `compare` does it. Needs the extra `oracle` (torch and transformers).
"""
