"""The claims of the founding text: one claim, one file; `suite` lists them, `report` writes the page."""
