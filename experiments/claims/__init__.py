"""Common claims about deep Transformers: one claim, one file; `suite` lists them, `report` writes the page."""
