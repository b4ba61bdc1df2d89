"""An X-ray of a checkpoint: what each of its layers does to a text.

Reading order: `vocabulary` (text to tokens), `subject` (what is looked into),
`reading` (the numbers), `picture` (the page), `__main__`.
"""
